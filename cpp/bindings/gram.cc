// Weighted Gram matrices, for the Python layer that checks their arguments.
#include "bindings/gram.h"

#include "bindings/call.h"
#include "bindings/design_matrix.h"
#include "bindings/outputs.h"
#include "kernels/gram.h"

namespace pullback {
namespace {

// More multiply-adds than this are done without the GIL.
constexpr double kReleaseGil = 1e5;

// An array of any strides, or a sparse X as engines take it.
bool ReadX(PyObject* object, GramProblem& problem) {
  const std::optional<DType> dtype = KernelArray(object);
  if (!dtype) return EngineSparse(object, problem.X);
  PyArrayObject* const array = AsArray(object);
  if (PyArray_NDIM(array) != 2) return false;
  const auto item = static_cast<npy_intp>(ItemSize(*dtype));
  const npy_intp rows = PyArray_DIM(array, 0), cols = PyArray_DIM(array, 1);
  // The stride of an axis of length 1 means nothing, and may be anything.
  const npy_intp down = rows > 1 ? PyArray_STRIDE(array, 0) : item;
  const npy_intp across = cols > 1 ? PyArray_STRIDE(array, 1) : item;
  if (down % item != 0 || across % item != 0) return false;
  problem.X = {Layout::kRows,
               *dtype,
               false,
               static_cast<size_t>(rows),
               static_cast<size_t>(cols),
               PyArray_DATA(array),
               0,
               nullptr,
               nullptr};
  problem.row = down / item;
  problem.col = across / item;
  return true;
}

PyObject* GramSums(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  constexpr const char* kName = "gram_sums";
  enum { kX, kC, kIntercept, kCount };
  if (nargs != kCount) return PyErr_Format(PyExc_TypeError, "%s takes %d arguments", kName, kCount);
  GramProblem problem = {};
  if (!ReadX(args[kX], problem)) return Refuse(kName, "X");
  const Design& X = problem.X;
  problem.several = 1;
  if (args[kC] != Py_None) {
    if (!PyArray_CheckExact(args[kC]) || PyArray_NDIM(AsArray(args[kC])) != 2) {
      return Refuse(kName, "c");
    }
    problem.several = static_cast<size_t>(PyArray_DIM(AsArray(args[kC]), 1));
    if (!IsBlock(args[kC], NPY_DOUBLE, X.rows * problem.several)) return Refuse(kName, "c");
    problem.c = static_cast<const double*>(DataOf(args[kC]));
  }
  problem.intercept = args[kIntercept] == Py_True;
  const auto size = static_cast<npy_intp>(problem.size());
  npy_intp shape[] = {static_cast<npy_intp>(problem.several), size, size};
  const Ref out(PyArray_ZEROS(3, shape, NPY_DOUBLE, 0));
  if (!out) return nullptr;
  bool found = true;
  if (X.rows > 0 && problem.several > 0 && size > 0) {
    const auto in_row = static_cast<double>(X.indptr == nullptr ? X.cols : X.entries / X.rows) + 1;
    const double work = static_cast<double>(X.rows * problem.several) * in_row * in_row +
                        static_cast<double>(size) * static_cast<double>(size);
    const bool done = RunKernel(work > kReleaseGil, [&](Poll* poll) {
      return SumGram(problem, static_cast<double*>(DataOf(out.get())), found, poll);
    });
    if (!done) return nullptr;
  }
  if (found) return Py_NewRef(out.get());
  const Ref error(Py_BuildValue("(si)", "X", 0));
  if (error) PyErr_SetObject(PyExc_ValueError, error.get());
  return nullptr;
}

PyMethodDef kEngine[] = {
    {"gram_sums", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(GramSums)), METH_FASTCALL,
     "gram_sums(X, c, intercept, /)\n--\n\n"},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

bool RegisterGramEngine(PyObject* module) { return PyModule_AddFunctions(module, kEngine) == 0; }

}  // namespace pullback
