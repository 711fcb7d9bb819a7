// The classes of pullback.jacobians, and the offsets of their slots.
#ifndef PULLBACK_CPP_BINDINGS_JACOBIAN_SLOTS_H_
#define PULLBACK_CPP_BINDINGS_JACOBIAN_SLOTS_H_

#include <array>
#include <string_view>

#include "bindings/numpy_api.h"

namespace pullback::jacobian {

enum Kind : size_t {
  kBlockDiagonal,
  kBroadcast,
  kDense,
  kDiagonal,
  kIdentity,
  kKronecker,
  kProduct,
  kReshape,
  kRowWise,
  kSumTo,
  kKinds
};

// Slots of all classes; a class's own follow.
enum Slot : size_t { kDtype, kInputShape, kOutputShape, kOwn };

constexpr size_t kMostSlots = 8;
constexpr std::array<const char*, kOwn> kShared = {"_dtype", "_input_shape", "_output_shape"};

struct Slots {
  std::string_view name;
  std::array<const char*, kMostSlots> own = {};
};

constexpr std::array<Slots, kKinds> kSlots = {{
    {"BlockDiagonal", {"_blocks"}},
    {"Broadcast"},
    {"Dense", {"_blocks"}},
    {"Diagonal", {"_diagonal"}},
    {"Identity"},
    {"Kronecker", {"_left", "_right", "_batches"}},
    {"Product", {"_entries", "_source", "_nbytes", "_is_flat", "_is_merged"}},
    {"Reshape"},
    {"RowWise", {"_primitive", "_x", "_axis", "_options", "_is_transposed"}},
    {"SumTo"},
}};
enum ProductSlot : size_t { kEntries = kOwn, kSource, kNbytes, kIsFlat, kIsMerged };

struct Class {
  PyTypeObject* type = nullptr;
  std::array<Py_ssize_t, kMostSlots> offset;
};

// What Python has passed, kept for the life of the process; no types and null before.
extern std::array<Class, kKinds> classes;
extern PyObject* rules;       // {(type, type): rule}, None where two stay apart
extern PyObject* no_batches;  // ((), ())

// The class of an object, or kKinds.
inline Kind KindOf(PyObject* object) {
  size_t kind = 0;
  while (kind < kKinds && Py_TYPE(object) != classes[kind].type) ++kind;
  return static_cast<Kind>(kind);
}

// The object in a slot, borrowed; null if it is empty.
inline PyObject*& Held(PyObject* jacobian, Kind kind, size_t slot) {
  char* const at = reinterpret_cast<char*>(jacobian) + classes[kind].offset[slot];
  return *reinterpret_cast<PyObject**>(at);
}

// A product of factors without a rule for each other. It takes over its arguments, and is null if
// one of them is.
Ref ProductOf(PyObject* dtype, Ref operand, Ref result, Ref factors);

// Adds jacobian_product and jacobian_elements, which move vectors and find elements.
bool RegisterVectors(PyObject* module);

}  // namespace pullback::jacobian

#endif  // PULLBACK_CPP_BINDINGS_JACOBIAN_SLOTS_H_
