"""The tokenizer, built from the vocabulary and the merges in the GGUF file: nothing is downloaded."""

from collections.abc import Iterable, Iterator, Sequence

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import DecodeStream
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits
from tokenizers.pre_tokenizers import Sequence as PreTokenizers

from .weights import Checkpoint, DemoError

# GGUF's token types; the others (normal, unknown, user defined, unused, byte) need nothing special here.
CONTROL = 3

SYSTEM_PROMPT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class ChatTokenizer:
    """Text to ids and back: GPT-2's byte-level BPE, but every digit is a token of its own."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        kind = (checkpoint.metadata("tokenizer.ggml.model"), checkpoint.metadata("tokenizer.ggml.pre"))
        if kind != ("gpt2", "smollm"):
            raise DemoError(f"expected a tokenizer of kind ('gpt2', 'smollm'), got {kind}")
        tokens: list[str] = checkpoint.metadata("tokenizer.ggml.tokens")
        merges = [tuple(pair.split(" ")) for pair in checkpoint.metadata("tokenizer.ggml.merges")]
        self._tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
        digits, words = Digits(individual_digits=True), ByteLevel(add_prefix_space=False)
        self._tokenizer.pre_tokenizer = PreTokenizers([digits, words])
        self._tokenizer.decoder = ByteLevelDecoder()
        types = checkpoint.metadata("tokenizer.ggml.token_type")
        self._tokenizer.add_special_tokens(
            [
                AddedToken(token, special=True, normalized=False)
                for token, token_type in zip(tokens, types, strict=True)
                if token_type == CONTROL
            ]
        )
        self.bos: int = checkpoint.metadata("tokenizer.ggml.bos_token_id")
        self.eos: int = checkpoint.metadata("tokenizer.ggml.eos_token_id")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; special tokens such as ``<|im_start|>`` are recognised."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids, without special tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Decode ids as they come. A character whose bytes are spread over several tokens comes with the last one."""
        decoder = DecodeStream(skip_special_tokens=True)
        for token in ids:
            piece = decoder.step(self._tokenizer, token)
            if piece:
                yield piece

    def chat(self, prompt: str) -> list[int]:
        """Return the ids of a user's prompt in ChatML, up to where the assistant's answer begins."""
        return self.encode(
            f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n"
            f"<|im_start|>user\n{prompt}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
