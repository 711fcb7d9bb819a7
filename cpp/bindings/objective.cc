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
#include "bindings/results.h"
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
  bool intercept;
  std::vector<double> no_intercepts;

  // Once a Hessian-vector product was asked for, gradients keep the second derivatives.
  bool keeps = false;
  std::vector<double> kept;
  std::optional<std::vector<double>> kept_for;  // the vector, which may be of no parameters

  size_t coefficients() const { return problem.X.cols * problem.outputs; }
  size_t parameters() const { return coefficients() + (intercept ? problem.outputs : 0); }
};

enum class Kind : uint8_t { kValue, kValueAndGrad, kGrad, kHvp };

struct ObjectiveEntry : MethodEntry {
  Kind kind;
  std::shared_ptr<Objective> objective;
};

// The data of a vector of all parameters; null for what Python has to look at.
const double* VectorOf(PyObject* object, const Objective& of) {
  const bool fits = object != nullptr && KernelArray(object) == DType::kFloat64 &&
                    PyArray_NDIM(AsArray(object)) == 1 &&
                    PyArray_IS_C_CONTIGUOUS(AsArray(object)) &&
                    static_cast<size_t>(PyArray_SIZE(AsArray(object))) == of.parameters();
  return fits ? static_cast<const double*>(DataOf(object)) : nullptr;
}

// The data as they now are: their owner may have reshaped them since. False with an exception set
// where they are no longer what the engine takes.
bool LookAt(const Objective& of, LinearProblem& problem) {
  const auto& [X, y, weight] = of.data;
  const std::optional<Design> found = EngineDesign(X.get());
  const size_t rows = of.problem.X.rows;
  const std::optional<TargetType> type =
      TargetsOf(y.get(), rows, problem.outputs, problem.loss->coupled);
  const bool weighted = weight.get() != Py_None;
  if (!found || found->rows != rows || found->cols != of.problem.X.cols || !type ||
      (weighted && !IsBlock(weight.get(), NPY_DOUBLE, rows))) {
    PyErr_SetString(PyExc_TypeError, "LinearObjective: its data are no longer what they were");
    return false;
  }
  problem.X = *found;
  problem.y = DataOf(y.get());
  problem.y_type = *type;
  problem.weight = weighted ? static_cast<const double*>(DataOf(weight.get())) : nullptr;
  return true;
}

// Sums over all rows, at `theta` where there is one. False, perhaps with an exception set, unless
// it is done and no row is bad.
bool Sum(Objective& of, Job job, const double* theta, const double* v, double* kept,
         double* gradient, double* loss) {
  LinearProblem problem = of.problem;
  problem.loss = of.kernels.Active();
  if (!LookAt(of, problem)) return false;
  const auto intercepts = [&](const double* vector) {
    return of.intercept ? vector + of.coefficients() : of.no_intercepts.data();
  };
  problem.w = theta;
  problem.b = intercepts(theta);
  if (v != nullptr) {
    problem.vw = v;
    problem.vb = intercepts(v);
  }
  problem.kept = kept;
  std::vector<double> dropped(of.intercept ? 0 : problem.outputs);
  LossResult result = {};
  result.gw = gradient;
  result.gb_dtype = DType::kFloat64;
  if (gradient != nullptr) {
    result.gb = of.intercept ? gradient + of.coefficients() : dropped.data();
  }
  const bool done = RunKernel(IsLarge(problem.X, problem.outputs),
                              [&](Poll* poll) { return SumLoss(job, problem, result, poll); });
  *loss = result.loss;
  return done && !result.bad;
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

PyObject* ObjectiveCall(const MethodEntry& own, const Arguments& args) {
  const auto& entry = static_cast<const ObjectiveEntry&>(own);
  Objective& of = *entry.objective;
  const double* const theta = VectorOf(args[0], of);
  if (theta == nullptr) return nullptr;
  double loss;
  if (entry.kind == Kind::kValue) {
    if (!Sum(of, Job::kValue, theta, nullptr, nullptr, nullptr, &loss)) return nullptr;
    return PyFloat_FromDouble(loss / of.weight + Penalty(of, args[0]));
  }
  const auto size = static_cast<npy_intp>(of.parameters());
  Ref gradient(NewArray(1, &size, DType::kFloat64));
  if (!gradient) return nullptr;
  auto* const to = static_cast<double*>(DataOf(gradient.get()));
  if (entry.kind == Kind::kHvp) {
    const double* const v = VectorOf(args[1], of);
    if (v == nullptr) return nullptr;
    // Bytes, not numbers: 0 and -0 are different vectors, NaN the same as itself.
    const size_t bytes = of.parameters() * sizeof(double);
    const bool known =
        of.kept_for && (bytes == 0 || std::memcmp(of.kept_for->data(), theta, bytes) == 0);
    if (!known) {
      std::vector<double> at(theta, theta + of.parameters());
      of.kept.resize(of.problem.X.rows * of.problem.outputs);
      of.kept_for.reset();
      of.keeps = true;
      if (!Sum(of, Job::kCurvature, theta, nullptr, of.kept.data(), nullptr, &loss)) {
        return nullptr;
      }
      of.kept_for = std::move(at);
    }
    if (!Sum(of, Job::kCurved, theta, v, of.kept.data(), to, &loss)) return nullptr;
    Finish(of, v, to);
    return gradient.release();
  }
  double* const kept = of.keeps ? of.kept.data() : nullptr;
  of.kept_for.reset();
  if (!Sum(of, Job::kGradient, theta, nullptr, kept, to, &loss)) return nullptr;
  if (of.keeps) of.kept_for.emplace(theta, theta + of.parameters());
  Finish(of, theta, to);
  if (entry.kind == Kind::kGrad) return gradient.release();
  const Ref value(PyFloat_FromDouble(loss / of.weight + Penalty(of, args[0])));
  return value ? PyTuple_Pack(2, value.get(), gradient.get()) : nullptr;
}

}  // namespace

PyObject* NewObjective(PyObject* const* args) {
  enum { kLoss, kParameter, kX, kY, kSampleWeight, kWeight, kL2, kOutputs, kIntercept };
  auto objective = std::make_shared<Objective>();
  Objective& of = *objective;
  const char* const name = PyUnicode_AsUTF8(args[kLoss]);
  const std::optional<size_t> row = name == nullptr ? std::nullopt : FindLoss(name);
  const Py_ssize_t outputs = PyLong_AsSsize_t(args[kOutputs]);
  if (PyErr_Occurred() != nullptr || !ReadDouble(args[kParameter], &of.problem.parameter) ||
      !ReadDouble(args[kWeight], &of.weight) || !ReadDouble(args[kL2], &of.l2)) {
    return nullptr;
  }
  const std::optional<Design> X = EngineDesign(args[kX]);
  if (!row || !X || X->rows == 0 || outputs <= 0) {
    return PyErr_Format(PyExc_TypeError, "objective: data are not what the engine takes");
  }
  of.kernels = RowOf(LossTables(), *row);
  of.problem.loss = of.kernels.Active();
  of.problem.X = *X;
  of.problem.outputs = static_cast<size_t>(outputs);
  of.problem.w_dtype = DType::kFloat64;
  of.intercept = args[kIntercept] == Py_True;
  of.no_intercepts.resize(of.problem.outputs);
  for (size_t i = 0; i < of.data.size(); ++i) of.data[i] = Ref(Py_NewRef(args[kX + i]));
  LinearProblem problem = of.problem;
  if (!LookAt(of, problem)) return nullptr;
  return PyCapsule_New(
      new std::shared_ptr<Objective>(std::move(objective)), kCapsule, [](PyObject* capsule) {
        delete static_cast<std::shared_ptr<Objective>*>(PyCapsule_GetPointer(capsule, kCapsule));
      });
}

PyObject* NewObjectiveMethod(PyObject* objective, const char* method, PyObject* fallback) {
  void* const held = PyCapsule_GetPointer(objective, kCapsule);
  if (held == nullptr) return nullptr;
  constexpr std::string_view kKinds[] = {"value", "value_and_grad", "grad", "hvp"};
  const auto* const kind = std::find(std::begin(kKinds), std::end(kKinds), method);
  auto entry = std::make_unique<ObjectiveEntry>();
  if (kind == std::end(kKinds)) {
    return PyErr_Format(PyExc_KeyError, "no native method '%s' of an objective", method);
  }
  entry->kind = static_cast<Kind>(kind - kKinds);
  entry->objective = *static_cast<std::shared_ptr<Objective>*>(held);
  if (!entry->signature.Read(fallback, entry->kind == Kind::kHvp ? 2 : 1)) return nullptr;
  return NewMethod(ObjectiveCall, std::move(entry), fallback);
}

}  // namespace pullback
