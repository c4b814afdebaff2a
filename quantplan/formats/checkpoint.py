"""Checkpoints: files of quantized linears, told apart, checked and read one linear at a time.

    linear = formats.load_linear("model.safetensors", "model.layers.0.mlp.down_proj")
    packed = linear.to_marlin(scale_element="f16")

`Checkpoint` opens one once, for many linears. Nothing of a file is believed: it is read by `safetensors`, its
configuration by name (docs/formats.md says which entries are known), and each linear by its own format's checks.
"""

from __future__ import annotations

import contextlib
import difflib
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import attrs

from quantplan.elements import ElementKind
from quantplan.errors import InvalidProblem
from quantplan.formats import _checks, _config, _json, _layouts, _repacked
from quantplan.formats._config import OP, Format
from quantplan.formats.int4 import Int4Frame, Int4Weight
from quantplan.formats.marlin import MarlinWeight, cast, from_marlin, to_marlin
from quantplan.formats.padding import TILE, pad_to_supported
from quantplan.formats.safetensors import SafetensorsFile
from quantplan.record import Record

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_INDEX = ".safetensors.index.json"


@attrs.frozen(kw_only=True, repr=False)
class LinearInfo(Record):
    """What a checkpoint's linear is; of one that cannot be read, why.

    Parameters
    ----------
    prefix : str
        The module's name.
    format : str
        ``gptq v1``, ``gptq v2``, ``awq``, ``compressed-tensors``, ``marlin`` or ``quantplan``.
    k, n : int, optional
        Logical size.
    group_size : int, optional
        Rows per group; −1: one group.
    symmetric : bool, optional
        Whether all zero points are 8.
    act_order : bool, optional
        Whether rows are out of order.
    scale_element : str, optional
        Element of the scales.
    bias : bool
    nbytes : int
        Of its tensors in the file.
    problem : str
        Why it cannot be read; empty if it can, and the fields above are then all there.
    """

    prefix: str
    format: str
    k: int | None = None
    n: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    act_order: bool | None = None
    scale_element: str | None = None
    bias: bool = False
    nbytes: int = 0
    problem: str = ""


@attrs.frozen(kw_only=True, eq=False)
class Examined:
    """A linear without its codes.

    Parameters
    ----------
    info : LinearInfo
    scheme : Scheme, optional
        How it was quantized; None in files that `repack` has written.
    found : Int4Frame or MarlinWeight
        The small tensors of an unpacked weight, or all of a packed one.
    bias : ndarray, shape (n,), optional
    """

    info: LinearInfo
    scheme: _config.Scheme | None
    found: Int4Frame | MarlinWeight
    bias: NDArray[Any] | None


@attrs.frozen(kw_only=True, eq=False)
class CheckpointLinear:
    """A linear of a checkpoint.

    Parameters
    ----------
    info : LinearInfo
        What it is, and in which format it was found.
    stored : Int4Weight or MarlinWeight
        As it was read: a MarlinWeight from files whose words are Marlin's already.
    bias : ndarray, shape (n,), optional
    """

    info: LinearInfo
    stored: Int4Weight | MarlinWeight
    bias: NDArray[Any] | None = None

    @property
    def weight(self) -> Int4Weight:
        """The weight in the one form that all formats have; Marlin's is unpacked for it, its padding included."""
        return from_marlin(self.stored) if isinstance(self.stored, MarlinWeight) else self.stored

    def to_marlin(self, *, scale_element: ElementKind | str | None = None) -> MarlinWeight:
        """Return the operands of Int4MarlinGemm, bias included: padded, and packed unless they were.

        Parameters
        ----------
        scale_element : ElementKind or str, optional
            f16, bf16 or f32: what scales and bias are rounded to; kernels want that of the activations. None: as they
            are.

        Returns
        -------
        MarlinWeight
            ``operands()`` and ``descriptor_fields()`` are what a plan takes.

        Raises
        ------
        InvalidProblem
            A g_idx with unequal groups, or a scale or bias beyond the range of ``scale_element``.
        """
        packed = self.stored
        if not isinstance(packed, MarlinWeight) or (16 * len(packed.weight_q)) % TILE:
            packed = to_marlin(pad_to_supported(self.weight), scale_element=scale_element)
        scale = cast(OP, "scales", packed.weight_scale, scale_element)
        bias = None if self.bias is None else cast(OP, "bias", self.bias, scale_element)
        return attrs.evolve(packed, weight_scale=scale, bias=bias)


class Checkpoint:
    """An open checkpoint. Its headers are read at once, its tensors when they are asked for.

    Parameters
    ----------
    path : str or path-like
        A .safetensors file, a folder of them, or the index of a sharded checkpoint.
    config : mapping, optional
        Entries of the quantization's configuration that count more than those of the files beside the weights, or that
        these lack: ``{"checkpoint_format": "gptq"}``, ``{"bits": 4, "group_size": 128}``.

    Attributes
    ----------
    single : bool
        Whether it is a file that was named by itself.
    folder : pathlib.Path
    files : tuple[SafetensorsFile, ...]
    tensors : dict[str, SafetensorsFile]
        Which file holds each tensor.
    config : Section
        What the files say about the quantization.

    Raises
    ------
    InvalidProblem
        Nothing that can be read lies there, or headers, index and configuration contradict themselves or each other.
    """

    def __init__(self, path: str | os.PathLike[str], *, config: Mapping[str, Any] | None = None) -> None:
        self.path = usable_path(OP, "path", path)
        self.single = not self.path.is_dir() and not self.path.name.endswith(_INDEX)
        self.folder, names, placed = _locate(self.path)
        self.files = tuple(SafetensorsFile(self.folder / name) for name in names)
        self.tensors: dict[str, SafetensorsFile] = {}
        for file in self.files:
            for name in file.tensors:
                if name in self.tensors:
                    got = f"{self.tensors[name].path.name} and {file.path.name}"
                    raise InvalidProblem(op=OP, field=name, expected="the tensor in one file", got=got)
                self.tensors[name] = file
        for name, where in placed.items():
            if name not in self.tensors or self.tensors[name].path.name != where:
                raise InvalidProblem(
                    op=OP, field=name, expected=f"the tensor in {where}, as the index says", got="none"
                )
        self.config = _config.read_config(self.folder, config)
        self._repacked = {prefix: said for file in self.files for prefix, said in _repacked.linears(file).items()}
        declared = None
        with contextlib.suppress(InvalidProblem):  # what is not known spoils its linears, and not the survey
            declared = _config.declared_format(self.config)
        self._found = _layouts.find(self.tensors, declared)
        for prefix in self._repacked:
            self._found.setdefault(prefix, {Format.QUANTPLAN})

    def __repr__(self) -> str:
        """Show where it is and what is in it."""
        return f"Checkpoint({str(self.path)!r}, {len(self._found)} linears, {len(self.tensors)} tensors)"

    @property
    def linears(self) -> tuple[str, ...]:
        """The modules that have tensors of quantized linears, whether or not these can be read."""
        return tuple(self._found)

    @property
    def others(self) -> tuple[str, ...]:
        """The tensors of no quantized linear, in the order of the files; biases are none of them."""
        owned = {name for prefix in self._found for name in (*self.owned(prefix), _layouts.full_name(prefix, "bias"))}
        return tuple(name for name in self.tensors if name not in owned)

    def owned(self, prefix: str) -> tuple[str, ...]:
        """Return the tensors that a linear is read from, without its bias."""
        names = (_layouts.full_name(prefix, s) for kind in self._found[prefix] for s in _layouts.TENSORS[kind])
        return tuple(dict.fromkeys(name for name in names if name in self.tensors))

    def array(self, name: str) -> NDArray[Any]:
        """Return a tensor, a view of the mapped file."""
        return self.tensors[name].array(name)

    def info(self, prefix: str) -> LinearInfo:
        """Return what a linear is. Everything is checked that `load_linear` checks, and no codes are unpacked.

        Raises
        ------
        InvalidProblem
            The checkpoint has no such linear, or it cannot be read.
        """
        return self.examine(prefix).info

    def survey(self) -> Iterator[LinearInfo]:
        """Yield every linear; those that cannot be read say why."""
        for prefix in self.linears:
            try:
                yield self.info(prefix)
            except InvalidProblem as error:
                kinds = ", ".join(sorted(kind.value for kind in self._found[prefix]))
                yield LinearInfo(prefix=prefix, format=kinds, nbytes=self._nbytes(prefix), problem=str(error))

    def load_linear(self, prefix: str) -> CheckpointLinear:
        """Read a linear; the parameters and errors are those of the function `load_linear`."""
        known = self.examine(prefix)
        if isinstance(known.found, MarlinWeight) or known.scheme is None:
            return CheckpointLinear(info=known.info, stored=known.found, bias=known.bias)  # type: ignore[arg-type]
        with self._named(prefix):
            stored = _layouts.weight(self._arrays(prefix, known.scheme.format), known.scheme)
        return CheckpointLinear(info=known.info, stored=stored, bias=known.bias)

    def examine(self, prefix: str) -> Examined:
        """Check a linear, and return all of it but its codes; the errors are those of `info`."""
        kind = self._kind(prefix)
        arrays = self._arrays(prefix, kind)
        scheme: _config.Scheme | None = None
        found: Int4Frame | MarlinWeight
        if kind is Format.QUANTPLAN:
            words = kind.value
            with self._named(prefix):
                found = _repacked.read(arrays, self._said(prefix))
        else:
            likely = _layouts.candidates(arrays) if kind is Format.GPTQ else (kind,)
            scheme = _config.scheme(self.config, prefix, likely)
            with self._named(prefix):
                found = _layouts.frame(arrays, scheme)
                words = _layouts.description(scheme, arrays)
        bias = self._bias(prefix, found.n)
        info = self._described(prefix, words, found, bias)
        return Examined(info=info, scheme=scheme, found=found, bias=bias)

    def _kind(self, prefix: str) -> Format:
        """Return what a linear's tensors look like."""
        if not isinstance(prefix, str):
            raise InvalidProblem(op=OP, field="prefix", expected="a module's name", got=_json.shown(prefix))
        if prefix not in self._found:
            plain = _layouts.full_name(prefix, "weight") in self.tensors
            near = difflib.get_close_matches(prefix, self._found, n=3, cutoff=0.5) or list(self._found)[:3]
            raise InvalidProblem(
                f"in {self.path}",
                op=OP,
                field="prefix",
                expected=f"one of {len(self._found)} quantized linears",
                got=f"{_json.shown(prefix)}, which {'is not quantized' if plain else 'is not there'}",
                hint=f"such as {', '.join(near)}" if near else None,
            )
        kinds = self._found[prefix]
        if len(kinds) > 1:
            got = " and ".join(sorted(kind.value for kind in kinds))
            raise InvalidProblem(f"in {self.path}", op=OP, field=prefix, expected="tensors of one format", got=got)
        return next(iter(kinds))

    def _said(self, prefix: str) -> _json.Section:
        if prefix not in self._repacked:
            raise InvalidProblem(op=OP, field="weight_q", expected="metadata that say its k and n", got="none")
        return self._repacked[prefix]

    def _arrays(self, prefix: str, kind: Format) -> dict[str, NDArray[Any]]:
        names = {suffix: _layouts.full_name(prefix, suffix) for suffix in _layouts.TENSORS[kind]}
        return {suffix: self.array(name) for suffix, name in names.items() if name in self.tensors}

    def _bias(self, prefix: str, n: int) -> NDArray[Any] | None:
        name = _layouts.full_name(prefix, _layouts.BIAS)
        if name not in self.tensors:
            return None
        with self._named(prefix):
            bias = _checks.tensor(OP, _layouts.BIAS, self.array(name), _checks.SCALES, ndim=1)
            _checks.shape(OP, _layouts.BIAS, bias, (n,), "(N,)")
        return bias

    def _described(
        self, prefix: str, words: str, found: Int4Frame | MarlinWeight, bias: NDArray[Any] | None
    ) -> LinearInfo:
        if isinstance(found, Int4Frame):
            scales, symmetric, act_order = found.scales, found.zeros is None, found.g_idx is not None
        else:
            scales, symmetric, act_order = found.weight_scale, found.weight_zero_point is None, found.perm is not None
        return LinearInfo(
            prefix=prefix,
            format=words,
            k=found.k,
            n=found.n,
            group_size=-1 if len(scales) == 1 else found.group_size,
            symmetric=symmetric,
            act_order=act_order,
            scale_element=ElementKind.of(scales.dtype).value,
            bias=bias is not None,
            nbytes=self._nbytes(prefix),
        )

    def _nbytes(self, prefix: str) -> int:
        names = (*self.owned(prefix), _layouts.full_name(prefix, _layouts.BIAS))
        return sum(self.tensors[name].tensors[name].nbytes for name in names if name in self.tensors)

    @contextlib.contextmanager
    def _named(self, prefix: str) -> Iterator[None]:
        """Give errors about a linear's tensor the tensor's whole name, and the file."""
        try:
            yield
        except InvalidProblem as error:
            name = _layouts.full_name(prefix, str(error.field))
            where = self.tensors[name].path if name in self.tensors else self.path
            error.op, error.field = OP, name
            error.message = f"in {where}" + (f": {error.message}" if error.message else "")
            raise


def load_linear(
    path: str | os.PathLike[str], prefix: str, *, config: Mapping[str, Any] | None = None
) -> CheckpointLinear:
    """Read one linear of a checkpoint: GPTQ, AWQ, compressed-tensors, Marlin, or what `repack` has written.

    Parameters
    ----------
    path, config : as for `Checkpoint`
    prefix : str
        The module's name: what its tensors' names begin with, ``model.layers.0.mlp.down_proj``.

    Returns
    -------
    CheckpointLinear
        Its ``weight``, its ``bias``, what it was, and ``to_marlin()``: operands and fields of a descriptor.

    Raises
    ------
    InvalidProblem
        A file, a configuration or a tensor that is missing, contradicts itself or others, or is of a kind that is not
        known here; the error's field is the tensor.
    """
    return Checkpoint(path, config=config).load_linear(prefix)


def usable_path(op: str, field: str, value: Any) -> Path:  # noqa: ANN401 - whatever a caller gives
    """Return a path that the system can be asked about, whether or not there is anything."""
    try:
        path = Path(value)
        path.exists()
        path.resolve()
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # too long, a null byte, a loop of links
        raise InvalidProblem(op=op, field=field, expected="a path", got=f"{_json.shown(value)}: {error}") from error
    return path


def _locate(path: Path) -> tuple[Path, Sequence[str], dict[str, str]]:
    """Return the folder of a checkpoint, the names of its files, and which of them an index says holds each tensor."""
    if not path.is_dir():
        if path.name.endswith(_INDEX):
            return _indexed(path)
        return path.parent, [path.name], {}
    indices = sorted(path.glob(f"*{_INDEX}"))
    if len(indices) > 1:
        indices = [index for index in indices if index.name == INDEX]
        if not indices:
            raise InvalidProblem(f"in {path}", op=OP, field="path", expected="one index", got="several: name one")
    if indices:
        return _indexed(indices[0])
    names = sorted(file.name for file in path.glob("*.safetensors") if not file.name.startswith("."))
    if not names:
        raise InvalidProblem(op=OP, field="path", expected="a folder of .safetensors files", got=path)
    return path, [WHOLE] if WHOLE in names else names, {}


def _indexed(index: Path) -> tuple[Path, Sequence[str], dict[str, str]]:
    """Return what an index says. It names files of its own folder, and no others."""
    whole = _json.Section(_json.read(index, op=OP, field="index"), op=OP, where="", file=index)
    placed = whole.section("weight_map")
    for name, file_name in placed.data.items():
        if not isinstance(file_name, str) or not _plain(file_name):
            placed.refuse(name, "the name of a .safetensors file beside the index")
    return index.parent, sorted(set(placed.data.values())), dict(placed.data)


def _plain(name: str) -> bool:
    """Whether a name is that of a file in a folder, on every platform, and leads nowhere else."""
    bare = PurePosixPath(name).name == name == PureWindowsPath(name).name
    return bare and name.endswith(".safetensors") and not name.startswith(".") and name.isprintable()
