#include "bindings/jacobians.h"

#include <structmember.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <string>
#include <string_view>

namespace pullback {
namespace {

enum Kind : size_t {
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

constexpr size_t kMostSlots = 8;

// A class and its slots, the first three those of them all.
struct Slots {
  std::string_view name;
  std::array<const char*, kMostSlots> own = {};
};

constexpr std::array<const char*, 3> kShared = {"_dtype", "_input_shape", "_output_shape"};

constexpr std::array<Slots, kKinds> kSlots = {{
    {"Broadcast"},
    {"Dense", {"_blocks"}},
    {"Diagonal", {"_diagonal"}},
    {"Identity"},
    {"Kronecker", {"_left", "_right", "_input_batch", "_output_batch"}},
    {"Product", {"_entries", "_source", "_nbytes", "_is_flat", "_is_merged"}},
    {"Reshape"},
    {"RowWise", {"_primitive", "_x", "_axis", "_options", "_is_transposed"}},
    {"SumTo"},
}};

// Python's classes, for as long as the process lives, and where their slots are.
struct Class {
  PyTypeObject* type = nullptr;
  std::array<Py_ssize_t, kMostSlots> offset;
};

std::array<Class, kKinds> classes;

// A slot's offset; -1 where it is none.
Py_ssize_t OffsetOf(PyObject* type, const char* name) {
  const Ref found(PyObject_GetAttrString(type, name));
  if (!found || !Py_IS_TYPE(found.get(), &PyMemberDescr_Type)) return -1;
  const PyMemberDef* const member = reinterpret_cast<PyMemberDescrObject*>(found.get())->d_member;
  return member->type == T_OBJECT_EX ? member->offset : -1;
}

// False where the slots are not those that are set here.
bool Read(Kind kind, PyObject* type, Class& to) {
  if (!PyType_Check(type)) return false;
  size_t count = 0;
  for (const char* const name : kShared) to.offset[count++] = OffsetOf(type, name);
  for (const char* const name : kSlots[kind].own) {
    if (name != nullptr) to.offset[count++] = OffsetOf(type, name);
  }
  to.type = reinterpret_cast<PyTypeObject*>(type);
  const auto size = static_cast<size_t>(to.type->tp_basicsize);
  // Nothing is left unset.
  return size == sizeof(PyObject) + count * sizeof(PyObject*) &&
         std::none_of(to.offset.begin(), to.offset.begin() + static_cast<ptrdiff_t>(count),
                      [](Py_ssize_t offset) { return offset < 0; });
}

// jacobian_classes(classes): a dictionary.
PyObject* SetClasses(PyObject*, PyObject* given) {
  std::array<Class, kKinds> read;
  for (size_t k = 0; k < kKinds; ++k) {
    PyObject* const type =
        PyDict_Check(given) ? PyDict_GetItemString(given, kSlots[k].name.data()) : nullptr;
    if (type == nullptr || !Read(static_cast<Kind>(k), type, read[k]) ||
        !std::equal(read[k].offset.begin(), read[k].offset.begin() + kShared.size(),
                    read[0].offset.begin())) {
      PyErr_Clear();
      return PyErr_Format(PyExc_TypeError, "jacobian_classes: no class %s with the slots wanted",
                          kSlots[k].name.data());
    }
  }
  for (const Class& one : read) Py_INCREF(one.type);
  classes = read;
  Py_RETURN_NONE;
}

// An object with all slots, of which those of its own are given in their order.
Ref Make(Kind kind, PyObject* dtype, const Ref& operand, const Ref& result,
         std::initializer_list<PyObject*> own = {}) {
  const Class& made = classes[kind];
  if (made.type == nullptr || !operand || !result) return Ref();
  Ref object(made.type->tp_alloc(made.type, 0));
  if (!object) return object;
  const auto set = [&](size_t slot, PyObject* value) {
    char* const at = reinterpret_cast<char*>(object.get()) + made.offset[slot];
    *reinterpret_cast<PyObject**>(at) = Py_NewRef(value);
  };
  set(0, dtype);
  set(1, operand.get());
  set(2, result.get());
  size_t slot = kShared.size();
  for (PyObject* const value : own) set(slot++, value);
  return object;
}

Ref Tuple(const Extents& shape) {
  Ref tuple(PyTuple_New(shape.ndim));
  for (int a = 0; tuple && a < shape.ndim; ++a) {
    PyObject* const extent = PyLong_FromSsize_t(shape.extent[a]);
    if (extent == nullptr) return Ref();
    PyTuple_SET_ITEM(tuple.get(), a, extent);
  }
  return tuple;
}

PyObject* DtypeOf(const Ref& array) {
  return reinterpret_cast<PyObject*>(PyArray_DESCR(AsArray(array.get())));
}

void SetReadOnly(const Ref& array) {
  PyArray_CLEARFLAGS(AsArray(array.get()), NPY_ARRAY_WRITEABLE);
}

// One of the shared slots of an object made here, which are in the same places in all classes.
Ref Shared(PyObject* jacobian, size_t slot) {
  char* const at = reinterpret_cast<char*>(jacobian) + classes[0].offset[slot];
  return Ref(Py_NewRef(*reinterpret_cast<PyObject**>(at)));
}

// A product of two or three that have no rule with each other.
Ref Product(PyObject* dtype, Ref factors) {
  if (!factors) return Ref();
  const Py_ssize_t count = PyTuple_GET_SIZE(factors.get());
  const Ref operand = Shared(PyTuple_GET_ITEM(factors.get(), count - 1), 1);
  return Make(kProduct, dtype, operand, Shared(PyTuple_GET_ITEM(factors.get(), 0), 2),
              {factors.get(), Py_None, Py_None, Py_True, Py_True});
}

Ref Diagonal(const Ref& slopes, const Ref& shape) {
  return Make(kDiagonal, DtypeOf(slopes), shape, shape, {slopes.get()});
}

}  // namespace

bool Extents::operator==(const Extents& other) const {
  return ndim == other.ndim && std::equal(extent, extent + ndim, other.extent);
}

Ref JacobianOfElements(Ref slopes, Extents operand) {
  if (!slopes) return Ref();
  const Extents whole(AsArray(slopes.get()));
  const Ref shape = Tuple(whole);
  Ref diagonal = Diagonal(slopes, shape);
  if (!diagonal || operand == whole) return diagonal;
  const Ref repeated = Make(kBroadcast, DtypeOf(slopes), Tuple(operand), shape);
  return repeated ? Product(DtypeOf(slopes), Ref(PyTuple_Pack(2, diagonal.get(), repeated.get())))
                  : Ref();
}

Ref JacobianOfValue(Ref row, Extents operand, Extents result) {
  if (!row) return row;
  SetReadOnly(row);
  return Make(kDense, DtypeOf(row), Tuple(operand), Tuple(result), {row.get()});
}

Ref JacobianOfSums(Ref slopes, uint64_t axes, bool keepdims) {
  if (!slopes) return Ref();
  const Extents whole(AsArray(slopes.get()));
  npy_intp kept[NPY_MAXDIMS], left[NPY_MAXDIMS];
  int count = 0;
  for (int a = 0; a < whole.ndim; ++a) {
    const bool reduced = (axes >> a & 1) != 0;
    kept[a] = reduced ? 1 : whole.extent[a];
    if (!reduced) left[count++] = whole.extent[a];
  }
  const Extents sums(whole.ndim, kept), result(count, left);
  PyObject* const dtype = DtypeOf(slopes);
  const Ref shape = Tuple(whole),
            reduced = sums == whole ? Ref(Py_XNewRef(shape.get())) : Tuple(sums);
  Ref diagonal = Diagonal(slopes, shape);
  if (!diagonal || !reduced) return Ref();
  std::array<Ref, 3> factors;
  Py_ssize_t moves = 0;
  if (!keepdims && axes != 0) {
    factors[static_cast<size_t>(moves++)] = Make(kReshape, dtype, reduced, Tuple(result));
  }
  if (!(sums == whole)) factors[static_cast<size_t>(moves++)] = Make(kSumTo, dtype, shape, reduced);
  if (moves == 0) return diagonal;
  factors[static_cast<size_t>(moves++)] = std::move(diagonal);
  Ref tuple(PyTuple_New(moves));
  for (Py_ssize_t i = 0; tuple && i < moves; ++i) {
    if (!factors[static_cast<size_t>(i)]) return Ref();
    PyTuple_SET_ITEM(tuple.get(), i, factors[static_cast<size_t>(i)].release());
  }
  return Product(dtype, std::move(tuple));
}

Ref JacobianOfRows(PyObject* primitive, Ref x, Ref axis, Ref options) {
  if (!x || !axis || !options) return Ref();
  const Ref shape = Tuple(Extents(AsArray(x.get())));
  return Make(kRowWise, DtypeOf(x), shape, shape,
              {primitive, x.get(), axis.get(), options.get(), Py_False});
}

Ref JacobianOfProduct(KroneckerFactor left, KroneckerFactor right, Extents operand,
                      Extents result) {
  PyObject* dtype = nullptr;
  std::array<Ref, 2> factors;
  size_t count = 0;
  for (KroneckerFactor* const factor : {&left, &right}) {
    if (factor->array) {
      dtype = DtypeOf(factor->array);
      SetReadOnly(factor->array);
      factors[count++] = std::move(factor->array);
    } else {
      factors[count++] =
          Ref(PyErr_Occurred() == nullptr ? PyLong_FromSize_t(factor->identity) : nullptr);
    }
  }
  const Ref none(PyTuple_New(0));
  if (dtype == nullptr || !factors[0] || !factors[1] || !none) return Ref();
  return Make(kKronecker, dtype, Tuple(operand), Tuple(result),
              {factors[0].get(), factors[1].get(), none.get(), none.get()});
}

Ref JacobianOfBroadcast(Extents operand, Extents result, DType dtype) {
  const Ref descr(reinterpret_cast<PyObject*>(PyArray_DescrFromType(TypeNumber(dtype))));
  const Ref shape = Tuple(operand);
  if (operand == result) return Make(kIdentity, descr.get(), shape, shape);
  return Make(kBroadcast, descr.get(), shape, Tuple(result));
}

Ref JacobianBehind(PyObject* slopes, Ref jacobian) {
  const Ref own(Py_NewRef(slopes));
  Ref diagonal = Diagonal(own, Tuple(Extents(AsArray(slopes))));
  if (!diagonal || !jacobian || Py_IS_TYPE(jacobian.get(), classes[kIdentity].type)) {
    return jacobian ? std::move(diagonal) : Ref();
  }
  return Product(DtypeOf(own), Ref(PyTuple_Pack(2, diagonal.get(), jacobian.get())));
}

bool RegisterJacobians(PyObject* module) {
  static PyMethodDef kFunctions[] = {
      {"jacobian_classes", SetClasses, METH_O, "jacobian_classes(classes, /)\n--\n\n"},
      {nullptr, nullptr, 0, nullptr},
  };
  return PyModule_AddFunctions(module, kFunctions) == 0;
}

}  // namespace pullback
