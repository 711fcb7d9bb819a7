// The data of linear models and their targets, as kernels take them.
#ifndef PULLBACK_CPP_BINDINGS_DESIGN_MATRIX_H_
#define PULLBACK_CPP_BINDINGS_DESIGN_MATRIX_H_

#include <array>
#include <optional>

#include "bindings/numpy_api.h"
#include "kernels/losses.h"

namespace pullback {

// Whether a pass over X is long enough to go without the GIL.
bool IsLarge(const Design& X, size_t outputs);

// C-contiguous, of `type`, that many elements.
bool IsBlock(PyObject* object, int type, size_t size);
bool IsWritableBlock(PyObject* object, int type, size_t size);

// `object` as dense X, if it is an array of rows or columns that kernels can read where it lies.
std::optional<Design> DenseDesign(PyObject* object);

// The same of what engines take: an array, or (format, data, indices, indptr, shape).
std::optional<Design> EngineDesign(PyObject* object);

// The type of targets that engines take; nothing for others.
std::optional<TargetType> TargetsOf(PyObject* y, size_t rows, size_t outputs, bool coupled);

// The arrays of a user's sparse matrix, alive for as long as its kernels run.
class SparseMatrix {
 public:
  // Nothing, perhaps with an exception set, unless kernels can read `object` where it lies. Each
  // attribute may be a property, which may change what the others have returned: all of them come
  // before the first look into an array.
  std::optional<Design> From(PyObject* object);

 private:
  std::array<Ref, 3> parts_;
};

}  // namespace pullback

#endif  // PULLBACK_CPP_BINDINGS_DESIGN_MATRIX_H_
