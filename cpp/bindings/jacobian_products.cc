#include "bindings/jacobian_products.h"

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "bindings/jacobian_slots.h"
#include "bindings/jacobians.h"
#include "bindings/operands.h"
#include "bindings/outputs.h"
#include "kernels/elementwise.h"

namespace pullback {
namespace {

using namespace jacobian;

// As many factors as Python keeps side by side, and as many elements as take less time than it.
constexpr size_t kMostFactors = 8;
constexpr npy_intp kMostElements = 4096;

// What is not done here is Python's: thrown with or without an exception set.
struct Left {};

Ref Needed(Ref object) {
  if (!object) throw Left();
  return object;
}

Ref Get(PyObject* jacobian, Slot slot) {
  const Kind kind = KindOf(jacobian);
  if (kind == kKinds) return Needed(Ref(PyObject_GetAttrString(jacobian, kShared[slot])));
  return Needed(Ref(Py_XNewRef(Held(jacobian, kind, slot))));
}

// An array of few elements in C order, of which a kernel takes rows of `n` at a time.
struct Rows {
  Ref array;
  npy_intp count, n;

  // Of a Diagonal, or a Dense.
  Rows(PyObject* jacobian, Kind kind, DType dtype)
      : array(Needed(Ref(Py_XNewRef(Held(jacobian, kind, kOwn))))) {
    PyArrayObject* const elements = AsArray(array.get());
    if (KernelArray(array.get()) != dtype || !PyArray_IS_C_CONTIGUOUS(elements) ||
        SizeOf(elements) > kMostElements) {
      throw Left();
    }
    const bool is_matrix = kind == kDense;
    if (is_matrix && PyArray_NDIM(elements) != 2) throw Left();
    count = is_matrix ? PyArray_DIM(elements, 0) : 1;
    n = is_matrix ? PyArray_DIM(elements, 1) : SizeOf(elements);
  }
};

// Two Jacobians as one, where both are diagonal, or the second one is that.
Ref Merged(PyObject* left, PyObject* right, DType dtype) {
  const bool is_diagonal = KindOf(left) == kDiagonal;
  const Rows a(left, KindOf(left), dtype), b(right, kDiagonal, dtype);
  PyArrayObject* const first = AsArray(a.array.get());
  if (a.n != b.n || PyArray_NDIM(AsArray(b.array.get())) == 0) throw Left();
  Ref product = Needed(Ref(NewArray(PyArray_NDIM(first), PyArray_DIMS(first), dtype)));
  static const OpPlace place = *PlaceOfOp("multiply");
  const ElementwiseKernel multiply =
      Ops(place.shard)[place.row]
          .kernel[static_cast<size_t>(Method::kValue)][static_cast<size_t>(dtype)];
  const auto item = static_cast<ptrdiff_t>(ItemSize(dtype));
  for (npy_intp row = 0; row < a.count; ++row) {
    const ptrdiff_t at = row * a.n * item;
    Operands operands;
    operands.data[0] = PyArray_BYTES(first) + at;
    operands.data[1] = PyArray_BYTES(AsArray(b.array.get()));
    operands.data[2] = PyArray_BYTES(AsArray(product.get())) + at;
    std::fill(std::begin(operands.stride), std::end(operands.stride), item);
    RunElementwise(multiply, ShapeOf(Method::kValue, 2), dtype, operands, static_cast<size_t>(a.n),
                   nullptr);
  }
  const Extents operand(AsArray(b.array.get()));
  if (is_diagonal) return Needed(JacobianOfElements(std::move(product), operand));
  const Ref shape = Get(left, kOutputShape);
  std::array<npy_intp, NPY_MAXDIMS> extents;
  if (!PyTuple_CheckExact(shape.get()) || PyTuple_GET_SIZE(shape.get()) > NPY_MAXDIMS) throw Left();
  const auto ndim = static_cast<int>(PyTuple_GET_SIZE(shape.get()));
  for (int axis = 0; axis < ndim; ++axis) {
    extents[static_cast<size_t>(axis)] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape.get(), axis));
  }
  if (PyErr_Occurred() != nullptr) throw Left();
  return Needed(JacobianOfValue(std::move(product), operand, Extents(ndim, extents.data())));
}

// Two neighbours as one; null, with no exception set, where they stay two.
Ref Apply(PyObject* left, PyObject* right, DType dtype) {
  if (KindOf(right) == kDiagonal && (KindOf(left) == kDiagonal || KindOf(left) == kDense)) {
    return Merged(left, right, dtype);
  }
  const Ref pair = Needed(Ref(PyTuple_Pack(2, Py_TYPE(left), Py_TYPE(right))));
  if (PyDict_GetItemWithError(rules, pair.get()) != Py_None) throw Left();
  return Ref();
}

class Factors {
 public:
  size_t size() const { return count_; }
  std::span<Ref> all() { return std::span(factors_.data(), count_); }

  void Add(Ref factor) {
    if (count_ == kMostFactors) throw Left();
    factors_[count_++] = std::move(factor);
  }

  // A Jacobian, or those that it is made of.
  void AddAll(PyObject* jacobian) {
    const Kind kind = KindOf(jacobian);
    if (kind != kProduct) {
      if (kind == kKinds) {
        const Ref is_leaf = Needed(Ref(PyObject_GetAttrString(jacobian, "_is_leaf")));
        if (is_leaf.get() != Py_True) throw Left();
      }
      Add(Ref(Py_NewRef(jacobian)));
      return;
    }
    const auto held = [&](size_t slot) { return Held(jacobian, kind, slot); };
    const Ref entries = Needed(Ref(Py_XNewRef(held(kEntries))));
    if (held(kIsFlat) != Py_True || held(kIsMerged) != Py_True || held(kSource) != Py_None ||
        !PyTuple_CheckExact(entries.get()) || PyTuple_GET_SIZE(entries.get()) == 0) {
      throw Left();
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(entries.get()); ++i) {
      Add(Ref(Py_NewRef(PyTuple_GET_ITEM(entries.get(), i))));
    }
  }

  // Merges the one at `seam` with the next one. What comes of it is of the first one's type, so
  // that it has no rule with those before it either; where it has one with the next, Python goes
  // on.
  void Merge(size_t seam, DType dtype) {
    Ref joined = Apply(factors_[seam].get(), factors_[seam + 1].get(), dtype);
    if (!joined) return;
    const auto at = factors_.begin() + static_cast<ptrdiff_t>(seam);
    *at = std::move(joined);
    std::move(at + 2, factors_.begin() + static_cast<ptrdiff_t>(count_), at + 1);
    --count_;
    if (seam + 1 < count_ && Apply(at[0].get(), at[1].get(), dtype)) throw Left();
  }

 private:
  size_t count_ = 0;
  std::array<Ref, kMostFactors> factors_;
};

Ref InC(PyObject* left, PyObject* right) {
  const Ref dtype = Get(left, kDtype), other = Get(right, kDtype);
  if (dtype.get() != other.get() || !PyArray_DescrCheck(dtype.get())) throw Left();
  const int type = reinterpret_cast<PyArray_Descr*>(dtype.get())->type_num;
  const Ref operand = Get(left, kInputShape), result = Get(right, kOutputShape);
  if ((type != NPY_FLOAT && type != NPY_DOUBLE) ||
      PyObject_RichCompareBool(operand.get(), result.get(), Py_EQ) != 1) {
    throw Left();
  }
  Factors factors;
  factors.AddAll(left);
  const size_t seam = factors.size() - 1;
  factors.AddAll(right);
  factors.Merge(seam, type == NPY_FLOAT ? DType::kFloat32 : DType::kFloat64);
  const std::span<Ref> all = factors.all();
  if (all.size() == 1) return std::move(all[0]);
  Ref entries = Needed(Ref(PyTuple_New(static_cast<Py_ssize_t>(all.size()))));
  for (size_t i = 0; i < all.size(); ++i) {
    PyTuple_SET_ITEM(entries.get(), static_cast<Py_ssize_t>(i), all[i].release());
  }
  return Needed(
      ProductOf(dtype.get(), Get(right, kInputShape), Get(left, kOutputShape), std::move(entries)));
}

}  // namespace

Ref JacobianProduct(PyObject* left, PyObject* right) {
  if (rules != nullptr) {
    try {
      return InC(left, right);
    } catch (const Left&) {
      if (PyErr_Occurred() != nullptr) LeaveToPython();
      if (PyErr_Occurred() != nullptr) return Ref();
    }
  }
  return Ref(PyNumber_MatrixMultiply(left, right));
}

}  // namespace pullback
