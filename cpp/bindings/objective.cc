// Linear objectives as fast callables of one vector.
#include "bindings/objective.h"

#include <algorithm>
#include <cmath>
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

enum class Kind : uint8_t { kValue, kValueAndGrad, kGrad, kHvp, kInitial, kPredict, kUnpack };

// Data that stay where they are, and are looked at anew in each call: nothing of their values is
// kept.
struct Objective : MethodEntry {
  int Traverse(visitproc visit, void* arg) const override {
    for (const Ref& of : data) Py_VISIT(of.get());
    Py_VISIT(response.get());
    return 0;
  }

  size_t coefficients() const { return cols * outputs; }
  size_t parameters() const { return coefficients() + (intercept ? outputs : 0); }

  Kind kind;
  std::array<Ref, 4> data;  // X, y, sample_weight and offset
  PerTarget<const LossKernels*> kernels;
  PerTarget<const LossKernels*> squares;  // of the loss that `initial` fits
  double parameter;
  double l2 = 0;              // of all coefficients
  std::vector<double> l2_of;  // or of each
  size_t rows, cols, outputs;
  bool intercept, several;  // whether outputs have an axis
  Ref response;             // of predictions, or None
  std::vector<double> no_intercepts;
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

// Puts a problem at a vector, and along a direction that may be null.
void PutAt(const Objective& of, const double* theta, const double* v, LinearProblem& problem) {
  const auto intercepts = [&](const double* vector) {
    return of.intercept && vector != nullptr ? vector + of.coefficients() : of.no_intercepts.data();
  };
  problem.w = theta;
  problem.b = intercepts(theta);
  problem.vw = v;
  problem.vb = intercepts(v);
}

// Adds up all rows of X. False, perhaps with an exception set, unless it is done and no row is bad.
bool Sum(Job job, const LinearProblem& problem, LossResult& result) {
  const bool done = RunKernel(IsLarge(problem.X, problem.outputs),
                              [&](Poll* poll) { return SumLoss(job, problem, result, poll); });
  return done && !result.bad;
}

// Times an infinite coefficient, 0 would be NaN.
double Times(double l2, double w) { return l2 == 0 ? 0 : l2 * w; }

// The means over the data, and the penalty's part in the gradient, which has as many elements as
// there are parameters; unless null.
bool Mean(const Objective& of, Job job, const LinearProblem& problem, double* gradient,
          double& loss) {
  std::vector<double> dropped(of.intercept ? 0 : of.outputs);
  LossResult result = {};
  result.divisor = SumOfWeights(problem);
  result.gw = gradient;
  result.gw_dtype = result.gb_dtype = DType::kFloat64;
  const bool has_room = of.intercept && gradient != nullptr;
  result.gb = has_room ? gradient + of.coefficients() : dropped.data();
  if (!IsOrdinary(*result.divisor) || !Sum(job, problem, result)) return false;
  loss = result.loss;
  if (gradient == nullptr) return true;
  const auto* const at = static_cast<const double*>(job == Job::kHvp ? problem.vw : problem.w);
  if (!of.l2_of.empty()) {
    for (size_t i = 0; i < of.coefficients(); ++i) gradient[i] += Times(of.l2_of[i], at[i]);
  } else if (of.l2 != 0) {
    for (size_t i = 0; i < of.coefficients(); ++i) gradient[i] += of.l2 * at[i];
  }
  return true;
}

// As NumPy's vdot.
double Dot(PyArrayObject* array, const double* one, const double* other, size_t n) {
  double product = 0;
  PyArray_Descr* const descr = PyArray_DESCR(array);
  // NumPy's signature does not promise that it only reads.
  PyDataType_GetArrFuncs(descr)->dotfunc(const_cast<double*>(one), sizeof(double),
                                         const_cast<double*>(other), sizeof(double), &product,
                                         static_cast<npy_intp>(n), array);
  return product;
}

// 1/2 w^T P w.
double Penalty(const Objective& of, PyObject* theta) {
  const size_t n = of.coefficients();
  const auto* const w = static_cast<const double*>(DataOf(theta));
  if (of.l2_of.empty()) return of.l2 == 0 ? 0.0 : 0.5 * of.l2 * Dot(AsArray(theta), w, w, n);
  std::vector<double> penalised(n), product(n);
  for (size_t i = 0; i < n; ++i) {
    if (of.l2_of[i] > 0) penalised[i] = w[i];
    product[i] = Times(of.l2_of[i], w[i]);
  }
  return 0.5 * Dot(AsArray(theta), penalised.data(), product.data(), n);
}

// See LinearObjective.initial: the step from zeros, of a problem that has its data.
PyObject* Initial(const Objective& of, LinearProblem problem) {
  const auto size = static_cast<npy_intp>(of.parameters());
  Ref step(NewArray(1, &size, DType::kFloat64));
  if (!step) return nullptr;
  auto* const to = static_cast<double*>(DataOf(step.get()));
  const std::vector<double> zeros(of.parameters());
  std::vector<double> positive(of.rows * of.outputs), curved(of.parameters());
  const auto clip = [](auto y) { return y <= 0 ? 0.0 : static_cast<double>(y); };
  OfType(problem.y_type == TargetType::kFloat32 ? DType::kFloat32 : DType::kFloat64,
         [&](auto type) {
           const auto* const y = static_cast<const decltype(type)*>(problem.y);
           std::transform(y, y + positive.size(), positive.begin(), clip);
         });
  problem.loss = of.squares.Active();
  problem.y = positive.data();
  problem.y_type = TargetType::kFloat64;
  double loss;
  PutAt(of, zeros.data(), nullptr, problem);
  if (!Mean(of, Job::kGradient, problem, to, loss)) return nullptr;
  PutAt(of, zeros.data(), to, problem);
  if (!Mean(of, Job::kHvp, problem, curved.data(), loss)) return nullptr;
  const double length = Dot(AsArray(step.get()), to, to, of.parameters()) /
                        Dot(AsArray(step.get()), to, curved.data(), of.parameters());
  std::transform(to, to + size, to, [&](double g) { return -length * g; });
  if (!std::all_of(to, to + size, [](double t) { return std::isfinite(t); })) {
    std::fill_n(to, size, 0.0);
  }
  return step.release();
}

// An array of the shape of predictions, or of the coefficients.
PyObject* NewOutputs(const Objective& of, size_t rows) {
  const npy_intp shape[] = {static_cast<npy_intp>(rows), static_cast<npy_intp>(of.outputs)};
  return NewArray(1 + of.several, shape, DType::kFloat64);
}

PyObject* Unpack(const Objective& of, const double* theta) {
  const double* const intercepts = theta + of.coefficients();
  Ref w(NewOutputs(of, of.cols));
  if (!w) return nullptr;
  std::copy(theta, intercepts, static_cast<double*>(DataOf(w.get())));
  const auto outputs = static_cast<npy_intp>(of.outputs);
  Ref b(!of.intercept ? Py_NewRef(Py_None)
        : of.several  ? NewArray(1, &outputs, DType::kFloat64)
                      : PyFloat_FromDouble(*intercepts));
  if (!b) return nullptr;
  if (of.intercept && of.several) {
    std::copy_n(intercepts, outputs, static_cast<double*>(DataOf(b.get())));
  }
  return Pair(std::move(w), std::move(b));
}

PyObject* Predict(const Objective& of, LinearProblem problem) {
  const Design& X = problem.X;
  Ref z(NewOutputs(of, X.rows));
  if (!z) return nullptr;
  problem.kept = static_cast<double*>(DataOf(z.get()));
  LossResult result = {};
  if (X.rows > 0 && !Sum(Job::kPredict, problem, result)) return nullptr;
  PyObject* const response = of.response.get();
  if (problem.loss->coupled) {  // the kernel that the response calls, at any labels
    const std::vector<int64_t> labels(X.rows);
    Ref p(NewOutputs(of, X.rows));
    if (!p) return nullptr;
    const PointwiseProblem of_z = {problem.loss,  problem.parameter, X.rows,
                                   of.outputs,    problem.kept,      DType::kFloat64,
                                   labels.data(), TargetType::kLabel};
    const bool done = RunKernel(IsLarge(X, of.outputs), [&](Poll* poll) {
      return MapLoss(Wanted::kCurvature, of_z, DataOf(p.get()), poll);
    });
    return done ? p.release() : nullptr;
  }
  return response == Py_None ? z.release() : PyObject_CallOneArg(response, z.get());
}

[[gnu::hot]] PyObject* ObjectiveCall(const MethodEntry& own, const Arguments& args) {
  const auto& of = static_cast<const Objective&>(own);
  const Kind kind = of.kind;
  const bool predicts = kind == Kind::kPredict;
  Ref vector = kind == Kind::kInitial ? Ref() : AsPlainArray(args[predicts ? 1 : 0]);
  Ref direction = kind == Kind::kHvp && vector ? AsPlainArray(args[1]) : Ref();
  if (PyErr_Occurred() != nullptr) return nullptr;
  LinearProblem problem;  // field by field: g++ clears it by an instruction that is slow
  problem.loss = of.kernels.Active();
  problem.parameter = of.parameter;
  problem.outputs = of.outputs;
  problem.w_dtype = problem.vw_dtype = DType::kFloat64;
  problem.weight = nullptr;
  problem.kept = nullptr;
  problem.gX = nullptr;
  // What may run Python code comes before the first look at what it may change.
  UserDesign design;
  UserTargets targets;
  UserOffset offset;
  if (kind != Kind::kUnpack &&
      !design.TakeAsStored(predicts ? args[0] : of.data[0].get(), problem.X)) {
    return nullptr;
  }
  const double* const theta = VectorOf(vector, of);
  if (theta == nullptr && kind != Kind::kInitial) return nullptr;
  if (kind == Kind::kUnpack) return Unpack(of, theta);
  const double* const v = kind == Kind::kHvp ? VectorOf(direction, of) : nullptr;
  if (problem.X.cols != of.cols || (kind == Kind::kHvp && v == nullptr)) return nullptr;
  PutAt(of, theta, v, problem);
  const auto outputs = of.several ? std::optional(static_cast<npy_intp>(of.outputs)) : std::nullopt;
  if (!offset.Take(predicts ? args[2] : of.data[3].get(), outputs, problem)) return nullptr;
  if (predicts) return Predict(of, problem);
  if (problem.X.rows != of.rows ||
      !targets.Take(of.data[1].get(), of.data[2].get(), outputs, problem)) {
    return nullptr;
  }
  if (kind == Kind::kInitial) return Initial(of, problem);
  double loss;
  Ref gradient;
  if (kind == Kind::kValue) {
    if (!Mean(of, Job::kValue, problem, nullptr, loss)) return nullptr;
  } else {
    const auto size = static_cast<npy_intp>(of.parameters());
    gradient = Ref(NewArray(1, &size, DType::kFloat64));
    if (!gradient) return nullptr;
    auto* const to = static_cast<double*>(DataOf(gradient.get()));
    const Job job = kind == Kind::kHvp ? Job::kHvp : Job::kGradient;
    if (!Mean(of, job, problem, to, loss)) return nullptr;
    if (kind != Kind::kValueAndGrad) return gradient.release();
  }
  Ref value(PyFloat_FromDouble(loss + Penalty(of, vector.get())));
  return gradient ? Pair(std::move(value), std::move(gradient)) : value.release();
}

}  // namespace

PyObject* NewObjectiveMethod(PyObject* const* args) {
  enum {
    kLoss,
    kParameter,
    kX,
    kY,
    kSampleWeight,
    kOffset,
    kRows,
    kCols,
    kL2,
    kOutputs,
    kIntercept,
    kSeveral,
    kResponse,
    kMethod,
    kFallback,
    kCount
  };
  static_assert(kCount == kObjectiveArguments);
  const char* const loss = PyUnicode_AsUTF8(args[kLoss]);
  const char* const method = loss == nullptr ? nullptr : PyUnicode_AsUTF8(args[kMethod]);
  if (method == nullptr) return nullptr;
  auto made = std::make_unique<Objective>();
  Objective& of = *made;
  const auto size = [&](size_t k) {
    return PyErr_Occurred() == nullptr ? PyLong_AsSize_t(args[k]) : 0;
  };
  of.rows = size(kRows);
  of.cols = size(kCols);
  of.outputs = size(kOutputs);
  if (PyErr_Occurred() != nullptr || !ReadDouble(args[kParameter], &of.parameter)) return nullptr;
  of.intercept = args[kIntercept] == Py_True;
  of.several = args[kSeveral] == Py_True;
  PyObject* const response = args[kResponse];
  constexpr std::string_view kKinds[] = {"value",   "value_and_grad", "grad",  "hvp",
                                         "initial", "predict",        "unpack"};
  const auto* const kind = std::find(std::begin(kKinds), std::end(kKinds), method);
  const std::optional<size_t> row = FindLoss(loss), squares = FindLoss("squared_error");
  constexpr size_t kMost = PTRDIFF_MAX / sizeof(double);
  const bool valid = kind != std::end(kKinds) && row && squares && of.rows > 0 && of.outputs > 0 &&
                     (of.outputs == 1 || of.several) && of.rows <= kMost / of.outputs &&
                     of.cols < kMost / of.outputs &&
                     (response == Py_None || PyCallable_Check(response) != 0);
  if (!valid) return PyErr_Format(PyExc_TypeError, "objective_method: no such objective or method");
  of.kind = static_cast<Kind>(kind - kKinds);
  of.kernels = RowOf(LossTables(), *row);
  of.squares = RowOf(LossTables(), *squares);
  of.response = Ref(Py_NewRef(response));
  of.no_intercepts.resize(of.outputs);
  if (IsBlock(args[kL2], NPY_DOUBLE, of.coefficients())) {
    const auto* const l2 = static_cast<const double*>(DataOf(args[kL2]));
    of.l2_of.assign(l2, l2 + of.coefficients());
  } else if (!ReadDouble(args[kL2], &of.l2)) {
    return nullptr;
  }
  for (size_t i = 0; i < of.data.size(); ++i) of.data[i] = Ref(Py_NewRef(args[kX + i]));
  const bool two = of.kind == Kind::kHvp || of.kind == Kind::kPredict;
  const size_t relied_on = of.kind == Kind::kInitial ? 0 : two ? 2 : 1;
  if (!of.signature.Read(args[kFallback], relied_on)) return nullptr;
  return NewMethod(ObjectiveCall, std::move(made), args[kFallback]);
}

}  // namespace pullback
