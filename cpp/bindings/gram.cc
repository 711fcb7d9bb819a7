// Weighted Gram matrices, for the Python layer that checks their arguments.
#include "bindings/gram.h"

#include <memory>
#include <optional>
#include <utility>

#include "bindings/call.h"
#include "bindings/design_matrix.h"
#include "bindings/method.h"
#include "kernels/gram.h"

namespace pullback {
namespace {

// More multiply-adds than this are done without the GIL.
constexpr double kReleaseGil = 1e5;

// An array of any strides.
bool ReadStrided(PyObject* object, GramProblem& problem) {
  const std::optional<DType> dtype = KernelArray(object);
  if (!dtype || PyArray_NDIM(AsArray(object)) != 2) return false;
  PyArrayObject* const array = AsArray(object);
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

// Takes factors of the rows, (rows, several) with an axis of `several` or without.
void TakeFactors(PyObject* c, GramProblem& problem) {
  problem.several =
      PyArray_NDIM(AsArray(c)) == 2 ? static_cast<size_t>(PyArray_DIM(AsArray(c), 1)) : 1;
  problem.c = static_cast<const double*>(DataOf(c));
}

// The matrices, with an axis of `several` or without; null with an exception set, or without one
// where an index is out of range.
Ref Grams(const GramProblem& problem, bool one) {
  const Design& X = problem.X;
  const auto size = static_cast<npy_intp>(problem.size());
  npy_intp shape[] = {static_cast<npy_intp>(problem.several), size, size};
  Ref out(PyArray_ZEROS(3 - one, shape + one, NPY_DOUBLE, 0));
  if (!out || X.rows == 0 || problem.several == 0 || size == 0) return out;
  const auto in_row = static_cast<double>(X.indptr == nullptr ? X.cols : X.entries / X.rows) + 1;
  const double work = static_cast<double>(X.rows * problem.several) * in_row * in_row +
                      static_cast<double>(size) * static_cast<double>(size);
  bool found = true;
  const bool done = RunKernel(work > kReleaseGil, [&](Poll* poll) {
    return SumGram(problem, static_cast<double*>(DataOf(out.get())), found, poll);
  });
  return done && found ? std::move(out) : Ref();
}

// gram(X, c), where kernels can read X where it lies, or in a small copy.
PyObject* GramCall(const MethodEntry&, const Arguments& args) {
  GramProblem problem = {};
  UserDesign design;
  if (!ReadStrided(args[0], problem)) {
    Design& X = problem.X;
    if (!design.Take(args[0], X) || X.stored != Stored::kAsComputed) return nullptr;
    problem.row = X.layout == Layout::kRows ? X.stride : 1;
    problem.col = X.layout == Layout::kRows ? 1 : X.stride;
  }
  problem.several = 1;
  PyObject* const c = args[1];
  Ref factors;
  if (c != nullptr && c != Py_None) {
    if (!PyArray_CheckExact(c)) return nullptr;
    const int ndim = PyArray_NDIM(AsArray(c));
    if ((ndim != 1 && ndim != 2) ||
        PyArray_DIM(AsArray(c), 0) != static_cast<npy_intp>(problem.X.rows)) {
      return nullptr;
    }
    factors = AsBlock(c, NPY_DOUBLE);
    if (!factors) return nullptr;
    TakeFactors(factors.get(), problem);
  }
  return Grams(problem, !factors || PyArray_NDIM(AsArray(factors.get())) == 1).release();
}

PyObject* GramSums(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  constexpr const char* kName = "gram_sums";
  enum { kX, kC, kIntercept, kCount };
  if (nargs != kCount) return PyErr_Format(PyExc_TypeError, "%s takes %d arguments", kName, kCount);
  GramProblem problem = {};
  if (!ReadStrided(args[kX], problem) && !EngineSparse(args[kX], problem.X)) {
    return Refuse(kName, "X");
  }
  problem.several = 1;
  PyObject* const c = args[kC];
  if (c != Py_None) {
    if (!PyArray_CheckExact(c) || PyArray_NDIM(AsArray(c)) != 2 ||
        PyArray_DIM(AsArray(c), 0) != static_cast<npy_intp>(problem.X.rows) ||
        !IsBlock(c, NPY_DOUBLE, static_cast<size_t>(PyArray_SIZE(AsArray(c))))) {
      return Refuse(kName, "c");
    }
    TakeFactors(c, problem);
  }
  problem.intercept = args[kIntercept] == Py_True;
  Ref grams = Grams(problem, false);
  if (grams || PyErr_Occurred() != nullptr) return grams.release();
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

PyObject* NewGramMethod(PyObject* fallback) {
  auto entry = std::make_unique<MethodEntry>();
  if (!entry->signature.Read(fallback, 1)) return nullptr;
  return NewMethod(GramCall, std::move(entry), fallback);
}

bool RegisterGramEngine(PyObject* module) { return PyModule_AddFunctions(module, kEngine) == 0; }

}  // namespace pullback
