#include "bindings/jacobian_products.h"

#include <structmember.h>

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "bindings/jacobians.h"
#include "bindings/operands.h"
#include "bindings/outputs.h"
#include "kernels/elementwise.h"

namespace pullback {
namespace {

// As many factors as Python keeps side by side, and as many elements as take less time than it.
constexpr size_t kMostFactors = 8;
constexpr npy_intp kMostElements = 4096;

enum Slot : size_t {
  kDtype,
  kInputShape,
  kOutputShape,
  kDiagonal,
  kBlocks,
  kEntries,
  kSource,
  kNbytes,
  kIsFlat,
  kIsMerged,
  kIsLeaf,
  kSlots
};

constexpr std::array<const char*, kSlots> kNames = {
    "_dtype",  "_input_shape", "_output_shape", "_diagonal",  "_blocks", "_entries",
    "_source", "_nbytes",      "_is_flat",      "_is_merged", "_is_leaf"};
std::array<PyObject*, kSlots> names;

// A class and where its slots are; -1 for none.
struct Class {
  PyTypeObject* type = nullptr;
  std::array<Py_ssize_t, kSlots> offset;

  bool Is(PyObject* object) const { return Py_IS_TYPE(object, type); }
  PyObject** At(PyObject* object, Slot slot) const {
    return reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset[slot]);
  }
};

// Python's, for as long as the process lives.
enum Kind : size_t { kDiagonals, kDenses, kProducts, kKinds };
std::array<Class, kKinds> classes;
PyObject* rules = nullptr;  // a dictionary

// What is not done here is Python's: thrown with or without an exception set.
struct Left {};

Ref Needed(Ref object) {
  if (!object) throw Left();
  return object;
}

Ref Get(PyObject* jacobian, Slot slot) {
  for (const Class& known : classes) {
    if (known.Is(jacobian) && known.offset[slot] >= 0) {
      return Needed(Ref(Py_XNewRef(*known.At(jacobian, slot))));
    }
  }
  return Needed(Ref(PyObject_GetAttr(jacobian, names[slot])));
}

// An array of few elements in C order, of which a kernel takes rows of `n` at a time.
struct Rows {
  Ref array;
  npy_intp count, n;

  Rows(PyObject* jacobian, Slot slot, DType dtype) : array(Get(jacobian, slot)) {
    PyArrayObject* const elements = AsArray(array.get());
    if (KernelArray(array.get()) != dtype || !PyArray_IS_C_CONTIGUOUS(elements) ||
        SizeOf(elements) > kMostElements) {
      throw Left();
    }
    const bool is_matrix = slot == kBlocks;
    if (is_matrix && PyArray_NDIM(elements) != 2) throw Left();
    count = is_matrix ? PyArray_DIM(elements, 0) : 1;
    n = is_matrix ? PyArray_DIM(elements, 1) : SizeOf(elements);
  }
};

// Two Jacobians as one, where both are diagonal, or the second one is that.
Ref Merged(PyObject* left, PyObject* right, DType dtype) {
  const bool is_diagonal = classes[kDiagonals].Is(left);
  const Rows a(left, is_diagonal ? kDiagonal : kBlocks, dtype), b(right, kDiagonal, dtype);
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
  if (classes[kDiagonals].Is(right) &&
      (classes[kDiagonals].Is(left) || classes[kDenses].Is(left))) {
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
    const auto is = [&](Slot slot, PyObject* value) { return Get(jacobian, slot).get() == value; };
    if (!classes[kProducts].Is(jacobian)) {
      const bool is_known = classes[kDiagonals].Is(jacobian) || classes[kDenses].Is(jacobian);
      if (!is_known && !is(kIsLeaf, Py_True)) throw Left();
      Add(Ref(Py_NewRef(jacobian)));
      return;
    }
    const Ref entries = Get(jacobian, kEntries);
    if (!is(kIsFlat, Py_True) || !is(kIsMerged, Py_True) || !is(kSource, Py_None) ||
        !PyTuple_CheckExact(entries.get()) || PyTuple_GET_SIZE(entries.get()) == 0) {
      throw Left();
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(entries.get()); ++i) {
      Add(Ref(Py_NewRef(PyTuple_GET_ITEM(entries.get(), i))));
    }
  }

  // Merges the one at `seam` with the next one, and what comes of it with its neighbours: first
  // with those before it.
  void Merge(size_t seam, DType dtype) {
    Ref joined = Apply(factors_[seam].get(), factors_[seam + 1].get(), dtype);
    while (joined) {
      factors_[seam] = Ref(joined.release());
      std::move(factors_.begin() + static_cast<ptrdiff_t>(seam) + 2,
                factors_.begin() + static_cast<ptrdiff_t>(count_),
                factors_.begin() + static_cast<ptrdiff_t>(seam) + 1);
      --count_;
      if (seam > 0) joined = Apply(factors_[seam - 1].get(), factors_[seam].get(), dtype);
      if (joined) {
        --seam;
      } else if (seam + 1 < count_) {
        joined = Apply(factors_[seam].get(), factors_[seam + 1].get(), dtype);
      }
    }
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
  const Ref first = Get(left, kOutputShape), last = Get(right, kInputShape);
  const Ref entries = Needed(Ref(PyTuple_New(static_cast<Py_ssize_t>(all.size()))));
  for (size_t i = 0; i < all.size(); ++i) {
    PyTuple_SET_ITEM(entries.get(), static_cast<Py_ssize_t>(i), all[i].release());
  }
  const Class& made = classes[kProducts];
  Ref product = Needed(Ref(made.type->tp_alloc(made.type, 0)));
  const std::pair<Slot, PyObject*> slots[] = {
      {kDtype, dtype.get()},     {kInputShape, last.get()}, {kOutputShape, first.get()},
      {kEntries, entries.get()}, {kSource, Py_None},        {kNbytes, Py_None},
      {kIsFlat, Py_True},        {kIsMerged, Py_True}};
  for (const auto& [slot, value] : slots) {
    *made.At(product.get(), slot) = Py_NewRef(value);
  }
  return product;
}

// A slot's offset; -1 where it is none.
Py_ssize_t OffsetOf(PyObject* type, Slot slot) {
  const Ref found(PyObject_GetAttr(type, names[slot]));
  if (!found || !Py_IS_TYPE(found.get(), &PyMemberDescr_Type)) return -1;
  const PyMemberDef* const member = reinterpret_cast<PyMemberDescrObject*>(found.get())->d_member;
  return member->type == T_OBJECT_EX ? member->offset : -1;
}

PyObject* SetRules(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  if (nargs != 4 || !PyType_Check(args[0]) || !PyType_Check(args[1]) || !PyType_Check(args[2]) ||
      !PyDict_CheckExact(args[3])) {
    PyErr_SetString(PyExc_TypeError, "jacobian_rules: takes three classes and a dictionary");
    return nullptr;
  }
  std::array<Class, kKinds> read;
  constexpr size_t kOwn[] = {kDiagonal, kBlocks, kEntries};  // the first of a class's own
  constexpr size_t kEnd[] = {kBlocks, kEntries, kIsLeaf};
  for (size_t kind = 0; kind < kKinds; ++kind) {
    read[kind].type = reinterpret_cast<PyTypeObject*>(args[kind]);
    for (size_t slot = 0; slot < kSlots; ++slot) {
      const bool has = slot < kDiagonal || (slot >= kOwn[kind] && slot < kEnd[kind]);
      read[kind].offset[slot] = has ? OffsetOf(args[kind], static_cast<Slot>(slot)) : -1;
      if (has && read[kind].offset[slot] < 0) {
        PyErr_Clear();
        return PyErr_Format(PyExc_TypeError, "jacobian_rules: %R has no slot %s", args[kind],
                            kNames[slot]);
      }
    }
  }
  for (Py_ssize_t i = 0; i < nargs; ++i) Py_INCREF(args[i]);
  classes = read;
  rules = args[3];
  Py_RETURN_NONE;
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

bool RegisterJacobianRules(PyObject* module) {
  static PyMethodDef kFunctions[] = {
      {"jacobian_rules", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(SetRules)),
       METH_FASTCALL, "jacobian_rules(diagonal, dense, product, rules, /)\n--\n\n"},
      {nullptr, nullptr, 0, nullptr},
  };
  for (size_t slot = 0; slot < kSlots; ++slot) {
    names[slot] = PyUnicode_InternFromString(kNames[slot]);
    if (names[slot] == nullptr) return false;
  }
  return PyModule_AddFunctions(module, kFunctions) == 0;
}

}  // namespace pullback
