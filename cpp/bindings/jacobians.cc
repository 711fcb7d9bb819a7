#include "bindings/jacobians.h"

#include <structmember.h>

#include <algorithm>
#include <array>

#include "bindings/jacobian_slots.h"
#include "bindings/outputs.h"

namespace pullback {
namespace jacobian {

std::array<Class, kKinds> classes;
PyObject* rules = nullptr;
PyObject* no_batches = nullptr;

}  // namespace jacobian

namespace {

using namespace jacobian;

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

// jacobian_classes(classes, rules): two dictionaries.
PyObject* SetClasses(PyObject*, PyObject* args) {
  PyObject *given, *found;
  if (!PyArg_ParseTuple(args, "O!O!:jacobian_classes", &PyDict_Type, &given, &PyDict_Type,
                        &found)) {
    return nullptr;
  }
  std::array<Class, kKinds> read;
  for (size_t k = 0; k < kKinds; ++k) {
    PyObject* const type = PyDict_GetItemString(given, kSlots[k].name.data());
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
  rules = Py_NewRef(found);
  Py_RETURN_NONE;
}

PyObject* Owned(Ref&& object) { return object.release(); }
PyObject* Owned(PyObject* object) { return Py_NewRef(object); }
Ref Again(const Ref& object) { return Ref(Py_XNewRef(object.get())); }

// An object with all slots, of which those of its own are given in their order.
template <class... Own>
Ref Make(Kind kind, PyObject* dtype, Ref&& operand, Ref&& result, Own&&... own) {
  const Class& made = classes[kind];
  if (made.type == nullptr || !operand || !result) return Ref();
  Ref object(made.type->tp_alloc(made.type, 0));
  if (!object) return object;
  Held(object.get(), kind, kDtype) = Py_NewRef(dtype);
  Held(object.get(), kind, kInputShape) = operand.release();
  Held(object.get(), kind, kOutputShape) = result.release();
  size_t slot = kOwn;
  ((Held(object.get(), kind, slot++) = Owned(std::forward<Own>(own))), ...);
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

// A product of what was made here; the shared slots are in the same places in all classes.
Ref ProductOf(PyObject* dtype, Ref factors) {
  if (!factors) return Ref();
  const auto held = [&](Py_ssize_t i, Slot slot) {
    return Ref(Py_NewRef(Held(PyTuple_GET_ITEM(factors.get(), i), kBroadcast, slot)));
  };
  Ref operand = held(PyTuple_GET_SIZE(factors.get()) - 1, kInputShape);
  Ref result = held(0, kOutputShape);
  return jacobian::ProductOf(dtype, std::move(operand), std::move(result), std::move(factors));
}

Ref DiagonalOf(const Ref& slopes, const Ref& shape) {
  return Make(kDiagonal, DtypeOf(slopes), Again(shape), Again(shape), slopes.get());
}

}  // namespace

Ref jacobian::ProductOf(PyObject* dtype, Ref operand, Ref result, Ref factors) {
  if (!factors) return Ref();
  return Make(kProduct, dtype, std::move(operand), std::move(result), std::move(factors), Py_None,
              Py_None, Py_True, Py_True);
}

bool Extents::operator==(const Extents& other) const {
  return ndim == other.ndim && std::equal(extent, extent + ndim, other.extent);
}

Ref JacobianOfElements(Ref slopes, Extents operand) {
  if (!slopes) return Ref();
  const Extents whole(AsArray(slopes.get()));
  if (operand == whole) return DiagonalOf(slopes, Tuple(whole));
  const DType dtype = KernelArray(slopes.get()).value();
  return JacobianBehind(slopes.get(), JacobianOfBroadcast(operand, whole, dtype));
}

Ref JacobianOfValue(Ref row, Extents operand, Extents result) {
  if (!row) return row;
  SetReadOnly(row);
  return Make(kDense, DtypeOf(row), Tuple(operand), Tuple(result), std::move(row));
}

Ref JacobianOfItems(Ref rows, Extents operand, Extents result) {
  if (!rows) return rows;
  npy_intp shape[] = {PyArray_MultiplyList(result.extent, result.ndim), 1,
                      operand.extent[operand.ndim - 1]};
  PyArray_Dims dims = {shape, 3};
  Ref blocks(PyArray_Newshape(AsArray(rows.get()), &dims, NPY_CORDER));
  if (!blocks) return blocks;
  SetReadOnly(blocks);
  return Make(kBlockDiagonal, DtypeOf(blocks), Tuple(operand), Tuple(result), std::move(blocks));
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
  Ref diagonal = DiagonalOf(slopes, shape);
  if (!diagonal || !reduced) return Ref();
  const Ref sum = sums == whole ? Ref() : Make(kSumTo, dtype, Again(shape), Again(reduced));
  const Ref moved =
      keepdims || axes == 0 ? Ref() : Make(kReshape, dtype, Again(reduced), Tuple(result));
  if (PyErr_Occurred() != nullptr) return Ref();
  if (!sum && !moved) return diagonal;
  return ProductOf(
      dtype, Ref(sum && moved ? PyTuple_Pack(3, moved.get(), sum.get(), diagonal.get())
                              : PyTuple_Pack(2, (moved ? moved : sum).get(), diagonal.get())));
}

Ref JacobianOfRows(PyObject* primitive, Ref x, Ref axis, Ref options) {
  if (!x || !axis || !options) return Ref();
  const Ref shape = Tuple(Extents(AsArray(x.get())));
  return Make(kRowWise, DtypeOf(x), Again(shape), Again(shape), primitive, std::move(x),
              std::move(axis), std::move(options), Py_False);
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
  if (dtype == nullptr || !factors[0] || !factors[1]) return Ref();
  return Make(kKronecker, dtype, Tuple(operand), Tuple(result), std::move(factors[0]),
              std::move(factors[1]), no_batches);
}

Ref JacobianOfBroadcast(Extents operand, Extents result, DType dtype) {
  const Ref descr(reinterpret_cast<PyObject*>(PyArray_DescrFromType(TypeNumber(dtype))));
  const Kind kind = operand == result ? kIdentity : kBroadcast;
  return Make(kind, descr.get(), Tuple(operand), Tuple(result));
}

Ref JacobianBehind(PyObject* slopes, Ref jacobian) {
  const Ref own(Py_NewRef(slopes));
  Ref diagonal = DiagonalOf(own, Tuple(Extents(AsArray(slopes))));
  if (!diagonal || !jacobian || Py_IS_TYPE(jacobian.get(), classes[kIdentity].type)) {
    return jacobian ? std::move(diagonal) : Ref();
  }
  return ProductOf(DtypeOf(own), Ref(PyTuple_Pack(2, diagonal.get(), jacobian.get())));
}

bool RegisterJacobians(PyObject* module) {
  const Ref none(PyTuple_New(0));
  no_batches = none ? PyTuple_Pack(2, none.get(), none.get()) : nullptr;
  static PyMethodDef kFunctions[] = {
      {"jacobian_classes", SetClasses, METH_VARARGS, "jacobian_classes(classes, rules, /)\n--\n\n"},
      {nullptr, nullptr, 0, nullptr},
  };
  return no_batches != nullptr && PyModule_AddFunctions(module, kFunctions) == 0 &&
         RegisterVectors(module);
}

}  // namespace pullback
