// Linear objectives as fast callables of one vector.
#include "bindings/objective.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "bindings/call.h"
#include "bindings/design_matrix.h"
#include "bindings/method.h"
#include "bindings/operands.h"
#include "bindings/outputs.h"
#include "kernels/losses.h"

namespace pullback {
namespace {

constexpr const char* kCapsule = "pullback.objective";

// Data that stay where they are, and the second derivatives kept from the last vector. Its methods
// share it.
struct Objective {
  std::array<Ref, 3> data;  // X, y and sample_weight: alive for as long as this
  PerTarget<const LossKernels*> kernels;
  LinearProblem problem = {};
  double weight, l2;
  bool intercept, several;  // whether outputs have an axis
  Ref response;             // of predictions, or None
  std::vector<double> no_intercepts;

  // Once a Hessian-vector product was asked for, gradients keep the second derivatives.
  bool keeps = false;
  std::vector<double> kept;
  std::optional<std::vector<double>> kept_for;  // the vector, which may be of no parameters

  size_t coefficients() const { return problem.X.cols * problem.outputs; }
  size_t parameters() const { return coefficients() + (intercept ? problem.outputs : 0); }
};

enum class Kind : uint8_t { kValue, kValueAndGrad, kGrad, kHvp, kPredict, kUnpack };

struct ObjectiveEntry : MethodEntry {
  Kind kind;
  std::shared_ptr<Objective> objective;
};

// Makes it float64 once no code but ours runs any more; null, perhaps with an exception set, where
// it is no vector of parameters.
const double* VectorOf(Ref& array, const Objective& of) {
  const bool fits = array && PyArray_CheckExact(array.get()) &&
                    PyArray_NDIM(AsArray(array.get())) == 1 &&
                    static_cast<size_t>(PyArray_SIZE(AsArray(array.get()))) == of.parameters();
  array = fits ? AsBlock(array.get(), NPY_DOUBLE) : Ref();
  return array ? static_cast<const double*>(DataOf(array.get())) : nullptr;
}

// The problem at a vector, and along a direction that may be null.
LinearProblem ProblemAt(const Objective& of, const double* theta, const double* v = nullptr) {
  const auto intercepts = [&](const double* vector) {
    return of.intercept && vector != nullptr ? vector + of.coefficients() : of.no_intercepts.data();
  };
  LinearProblem problem = of.problem;
  problem.loss = of.kernels.Active();
  problem.w = theta;
  problem.b = intercepts(theta);
  problem.vw = v;
  problem.vb = intercepts(v);
  return problem;
}

// Looks at the data as they now are: their owner may have reshaped them since. False with an
// exception set where they are no longer what the engine takes.
bool LookAt(const Objective& of, LinearProblem& problem) {
  const auto& [X, y, weight] = of.data;
  const Design& before = of.problem.X;
  if (ReadSamples(X.get(), y.get(), weight.get(), problem) == nullptr &&
      problem.X.rows == before.rows && problem.X.cols == before.cols) {
    return true;
  }
  PyErr_SetString(PyExc_TypeError, "LinearObjective: its data are no longer what they were");
  return false;
}

// Adds up all rows of X. False, perhaps with an exception set, unless it is done and no row is bad.
bool Sum(Job job, const LinearProblem& problem, LossResult& result) {
  const bool done = RunKernel(IsLarge(problem.X, problem.outputs),
                              [&](Poll* poll) { return SumLoss(job, problem, result, poll); });
  return done && !result.bad;
}

// The same of the data.
bool SumData(const Objective& of, Job job, LinearProblem& problem, double* kept, LossResult& result,
             double* gradient = nullptr) {
  if (!LookAt(of, problem)) return false;
  problem.kept = kept;
  std::vector<double> dropped(of.intercept ? 0 : problem.outputs);
  result.divisor = 1.0;
  result.gw = gradient;
  result.gw_dtype = result.gb_dtype = DType::kFloat64;
  const bool has_room = of.intercept && gradient != nullptr;
  result.gb = has_room ? gradient + of.coefficients() : dropped.data();
  return Sum(job, problem, result);
}

// l2/2 ||w||^2; times an infinite parameter, 0 would be NaN.
double Penalty(const Objective& of, PyObject* theta) {
  if (of.l2 == 0) return 0.0;
  double square = 0;
  char* const w = PyArray_BYTES(AsArray(theta));
  PyArray_Descr* const descr = PyArray_DESCR(AsArray(theta));
  PyDataType_GetArrFuncs(descr)->dotfunc(w, sizeof(double), w, sizeof(double), &square,
                                         static_cast<npy_intp>(of.coefficients()), theta);
  return 0.5 * of.l2 * square;
}

// The mean, and the penalty's part in it at `w`.
void Finish(const Objective& of, const double* w, double* gradient) {
  for (size_t i = 0; i < of.parameters(); ++i) gradient[i] /= of.weight;
  if (of.l2 == 0) return;
  for (size_t i = 0; i < of.coefficients(); ++i) gradient[i] += of.l2 * w[i];
}

// An array of the shape of predictions, or of the coefficients.
PyObject* NewOutputs(const Objective& of, size_t rows) {
  const npy_intp shape[] = {static_cast<npy_intp>(rows), static_cast<npy_intp>(of.problem.outputs)};
  return NewArray(1 + of.several, shape, DType::kFloat64);
}

PyObject* Unpack(const Objective& of, const double* theta) {
  const double* const intercepts = theta + of.coefficients();
  Ref w(NewOutputs(of, of.problem.X.cols));
  if (!w) return nullptr;
  std::copy(theta, intercepts, static_cast<double*>(DataOf(w.get())));
  const auto outputs = static_cast<npy_intp>(of.problem.outputs);
  Ref b(!of.intercept ? Py_NewRef(Py_None)
        : of.several  ? NewArray(1, &outputs, DType::kFloat64)
                      : PyFloat_FromDouble(*intercepts));
  if (!b) return nullptr;
  if (of.intercept && of.several) {
    std::copy_n(intercepts, outputs, static_cast<double*>(DataOf(b.get())));
  }
  return Pair(std::move(w), std::move(b));
}

// Keeps the second derivatives at a vector, unless they are kept. False, perhaps with an exception
// set, if it fails.
bool KeepCurvature(Objective& of, const double* theta) {
  // Bytes, not numbers: 0 and -0 are different vectors, NaN the same as itself.
  const size_t bytes = of.parameters() * sizeof(double);
  if (of.kept_for && (bytes == 0 || std::memcmp(of.kept_for->data(), theta, bytes) == 0)) {
    return true;
  }
  std::vector<double> at(theta, theta + of.parameters());
  of.kept.resize(of.problem.X.rows * of.problem.outputs);
  of.kept_for.reset();
  of.keeps = true;
  LinearProblem problem = ProblemAt(of, theta);
  LossResult result = {};
  if (!SumData(of, Job::kCurvature, problem, of.kept.data(), result)) return false;
  of.kept_for = std::move(at);
  return true;
}

PyObject* Predict(const Objective& of, const Design& X, const double* theta) {
  Ref z(NewOutputs(of, X.rows));
  if (!z) return nullptr;
  LinearProblem problem = ProblemAt(of, theta);
  problem.X = X;
  problem.kept = static_cast<double*>(DataOf(z.get()));
  LossResult result = {};
  if (X.rows > 0 && !Sum(Job::kPredict, problem, result)) return nullptr;
  PyObject* const response = of.response.get();
  if (problem.loss->coupled) {  // the kernel that the response calls, at any labels
    const std::vector<int64_t> labels(X.rows);
    Ref p(NewOutputs(of, X.rows));
    if (!p) return nullptr;
    const PointwiseProblem of_z = {problem.loss,       problem.parameter, X.rows,
                                   of.problem.outputs, problem.kept,      DType::kFloat64,
                                   labels.data(),      TargetType::kLabel};
    const bool done = RunKernel(IsLarge(X, of.problem.outputs), [&](Poll* poll) {
      return MapLoss(Wanted::kCurvature, of_z, DataOf(p.get()), poll);
    });
    return done ? p.release() : nullptr;
  }
  return response == Py_None ? z.release() : PyObject_CallOneArg(response, z.get());
}

[[gnu::hot]] PyObject* ObjectiveCall(const MethodEntry& own, const Arguments& args) {
  const auto& entry = static_cast<const ObjectiveEntry&>(own);
  Objective& of = *entry.objective;
  const bool predicts = entry.kind == Kind::kPredict, has_v = entry.kind == Kind::kHvp;
  // What may run Python code comes before the first look at what it may change.
  Ref vector = AsPlainArray(args[predicts ? 1 : 0]);
  Ref direction = vector && has_v ? AsPlainArray(args[1]) : Ref();
  UserDesign design;
  Design X;
  const bool reads = vector && predicts && design.Take(args[0], X);
  if (PyErr_Occurred() != nullptr) return nullptr;
  const double* const theta = VectorOf(vector, of);
  if (theta == nullptr) return nullptr;
  if (predicts) return reads && X.cols == of.problem.X.cols ? Predict(of, X, theta) : nullptr;
  if (entry.kind == Kind::kUnpack) return Unpack(of, theta);
  const double* const v = has_v ? VectorOf(direction, of) : nullptr;
  if (has_v && (v == nullptr || !KeepCurvature(of, theta))) return nullptr;
  LinearProblem problem = ProblemAt(of, theta, v);
  LossResult result = {};
  Ref gradient;
  if (entry.kind == Kind::kValue) {
    if (!SumData(of, Job::kValue, problem, nullptr, result)) return nullptr;
  } else {
    const auto size = static_cast<npy_intp>(of.parameters());
    gradient = Ref(NewArray(1, &size, DType::kFloat64));
    if (!gradient) return nullptr;
    if (!has_v) of.kept_for.reset();
    auto* const to = static_cast<double*>(DataOf(gradient.get()));
    if (!SumData(of, has_v ? Job::kCurved : Job::kGradient, problem,
                 of.keeps ? of.kept.data() : nullptr, result, to)) {
      return nullptr;
    }
    if (of.keeps && !has_v) of.kept_for.emplace(theta, theta + of.parameters());
    Finish(of, has_v ? v : theta, to);
    if (entry.kind != Kind::kValueAndGrad) return gradient.release();
  }
  Ref value(PyFloat_FromDouble(result.loss / of.weight + Penalty(of, vector.get())));
  return gradient ? Pair(std::move(value), std::move(gradient)) : value.release();
}

}  // namespace

PyObject* NewObjective(PyObject* const* args) {
  enum {
    kLoss,
    kParameter,
    kX,
    kY,
    kSampleWeight,
    kWeight,
    kL2,
    kOutputs,
    kIntercept,
    kSeveral,
    kResponse,
    kCount
  };
  static_assert(kCount == kObjectiveArguments);
  auto objective = std::make_shared<Objective>();
  Objective& of = *objective;
  const char* const name = PyUnicode_AsUTF8(args[kLoss]);
  const std::optional<size_t> row = name == nullptr ? std::nullopt : FindLoss(name);
  const Py_ssize_t outputs = PyLong_AsSsize_t(args[kOutputs]);
  if (PyErr_Occurred() != nullptr || !ReadDouble(args[kParameter], &of.problem.parameter) ||
      !ReadDouble(args[kWeight], &of.weight) || !ReadDouble(args[kL2], &of.l2)) {
    return nullptr;
  }
  PyObject* const response = args[kResponse];
  of.several = args[kSeveral] == Py_True;
  const bool valid = row && outputs > 0 && (outputs == 1 || of.several) &&
                     (response == Py_None || PyCallable_Check(response) != 0);
  if (valid) {
    of.kernels = RowOf(LossTables(), *row);
    of.problem.loss = of.kernels.Active();
    of.problem.outputs = static_cast<size_t>(outputs);
    of.problem.w_dtype = of.problem.vw_dtype = DType::kFloat64;
  }
  if (!valid || ReadSamples(args[kX], args[kY], args[kSampleWeight], of.problem) != nullptr ||
      of.problem.X.rows == 0) {
    return PyErr_Format(PyExc_TypeError, "objective: data are not what the engine takes");
  }
  of.intercept = args[kIntercept] == Py_True;
  of.response = Ref(Py_NewRef(response));
  of.no_intercepts.resize(of.problem.outputs);
  for (size_t i = 0; i < of.data.size(); ++i) of.data[i] = Ref(Py_NewRef(args[kX + i]));
  return PyCapsule_New(
      new std::shared_ptr<Objective>(std::move(objective)), kCapsule, [](PyObject* capsule) {
        delete static_cast<std::shared_ptr<Objective>*>(PyCapsule_GetPointer(capsule, kCapsule));
      });
}

PyObject* NewObjectiveMethod(PyObject* objective, const char* method, PyObject* fallback) {
  void* const held = PyCapsule_GetPointer(objective, kCapsule);
  if (held == nullptr) return nullptr;
  constexpr std::string_view kKinds[] = {"value", "value_and_grad", "grad",
                                         "hvp",   "predict",        "unpack"};
  const auto* const kind = std::find(std::begin(kKinds), std::end(kKinds), method);
  auto entry = std::make_unique<ObjectiveEntry>();
  if (kind == std::end(kKinds)) {
    return PyErr_Format(PyExc_KeyError, "no native method '%s' of an objective", method);
  }
  entry->kind = static_cast<Kind>(kind - kKinds);
  entry->objective = *static_cast<std::shared_ptr<Objective>*>(held);
  const bool two = entry->kind == Kind::kHvp || entry->kind == Kind::kPredict;
  if (!entry->signature.Read(fallback, two ? 2 : 1)) return nullptr;
  return NewMethod(ObjectiveCall, std::move(entry), fallback);
}

}  // namespace pullback
