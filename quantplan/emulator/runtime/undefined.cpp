// What the compiler calls where a kernel does what C++ leaves undefined, in place of -fsanitize=undefined's own
// runtime. The structures are those of its interface; each begins with the place in the source.
#include "runtime.h"

namespace emulated {

namespace {

struct Location {
  const char* file;
  uint32_t line, column;
};

struct Type {
  uint16_t kind, info;
  char name[1];  // longer, and in quotes
};

struct OutOfBounds {
  Location where;
  const Type *array, *index;
};

struct TypeMismatch {
  Location where;
  const Type* type;
  uint8_t log_alignment, kind;
};

Site site_of(const Location& where) { return site_of(Where{where.file, int(where.line)}); }

[[noreturn]] void undefined(const Location& where, const char* what) {
  fail(Fault::undefined, site_of(where), 0, "thread %u: %s", current.linear, what);
}

}  // namespace

}  // namespace emulated

using namespace emulated;

#define EMULATED_UNDEFINED(handler, what) \
  EMULATED_HOOK void __ubsan_handle_##handler##_abort(const Location* where) { undefined(*where, what); }

extern "C" {
EMULATED_UNDEFINED(add_overflow, "a signed sum that overflows")
EMULATED_UNDEFINED(sub_overflow, "a signed difference that overflows")
EMULATED_UNDEFINED(mul_overflow, "a signed product that overflows")
EMULATED_UNDEFINED(negate_overflow, "a negated integer that overflows")
EMULATED_UNDEFINED(divrem_overflow, "an integer division by zero, or one that overflows")
EMULATED_UNDEFINED(shift_out_of_bounds, "a shift by more bits than there are, or of a sign bit")
EMULATED_UNDEFINED(float_cast_overflow, "a float converted to an integer that cannot hold it")
EMULATED_UNDEFINED(load_invalid_value, "a bool or an enum with a value that it cannot have")

EMULATED_HOOK void __ubsan_handle_out_of_bounds_abort(const OutOfBounds* data, uintptr_t index) {
  fail(Fault::out_of_bounds, site_of(data->where), 0, "thread %u: index %lld of an array %s", current.linear,
       static_cast<long long>(index), data->array->name);
}

EMULATED_HOOK void __ubsan_handle_type_mismatch_v1_abort(const TypeMismatch* data, uintptr_t address) {
  if (data->log_alignment == 0)  // of -fsanitize=object-size
    fail(Fault::out_of_bounds, site_of(data->where), 0, "thread %u: %s behind the end of a local object",
         current.linear, data->type->name);
  fail_misaligned(address, data->type->name, size_t(1) << data->log_alignment, site_of(data->where));
}
}
