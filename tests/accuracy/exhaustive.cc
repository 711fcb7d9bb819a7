#include "exhaustive.h"

#include <array>
#include <atomic>
#include <cstring>
#include <mutex>

namespace pullback::accuracy {
namespace {

constexpr size_t kBlock = 2048, kBlocks = 32;  // to a task
constexpr size_t kOutputs = 2;

uint64_t Hash(uint64_t x) { return x * 0x9E3779B97F4A7C15u >> 40; }

// What a thread works in.
struct Buffers {
  std::vector<float> x = std::vector<float>(kBlock);
  std::vector<double> wide = std::vector<double>(kBlock);
  std::array<std::vector<double>, kOutputs> exact;
  std::vector<std::array<std::vector<float>, kOutputs>> got;  // by target

  explicit Buffers(size_t targets) : got(targets) {
    for (auto& y : exact) y.resize(kBlock);
    for (auto& outputs : got) {
      for (auto& y : outputs) y.resize(kBlock);
    }
  }
};

class AllFloats {
 public:
  AllFloats(const Op& op, const std::vector<Kernel>& kernels, ElementwiseKernel reference,
            WorstError worst_error, Extent extent, Result& result)
      : op_(op),
        kernels_(kernels),
        reference_(reference),
        worst_error_(worst_error),
        extent_(extent),
        tasks_(((uint64_t{1} << 32) / extent.stride + kBlock * kBlocks - 1) / (kBlock * kBlocks)),
        result_(result),
        leading_(kernels.size()),
        samples_(kernels.size()) {}

  size_t tasks() const { return static_cast<size_t>(tasks_); }

  void Task(Buffers& buffers, size_t task) {
    // Not every n-th task: their numbers have the low bits in common.
    const bool all = kernels_.size() == 1 || Hash(task) % extent_.sparse == 0;
    const size_t targets = all ? kernels_.size() : kernels_.size() - 1;
    for (size_t block = 0; block < kBlocks; ++block) {
      Compute(buffers, task, block, targets);
      for (size_t o = 0; o < kOutputs; ++o) Judge(buffers, o, targets);
    }
    for (size_t t = 0; t < targets; ++t) samples_[t] += kBlock * kBlocks;
  }

  uint64_t samples(size_t target) const { return samples_[target]; }

 private:
  void Compute(Buffers& buffers, size_t task, size_t block, size_t targets) {
    for (size_t i = 0; i < kBlock; ++i) {
      // Every task spans the whole range: an early one finds nearly the maximum. A stride leaves
      // room for the low bits to vary.
      const uint64_t index = ((block * kBlock + i) * tasks_ + task) * extent_.stride;
      const uint64_t jitter = extent_.stride == 1 ? 0 : Hash(index) % extent_.stride;
      buffers.x[i] = FromBits<float>(static_cast<uint32_t>(index + jitter));
      buffers.wide[i] = static_cast<double>(buffers.x[i]);
    }
    const void* wide_in[1] = {buffers.wide.data()};
    void* wide_out[kOutputs] = {buffers.exact[0].data(), buffers.exact[1].data()};
    reference_(wide_in, wide_out, kBlock, 0);
    const void* in[1] = {buffers.x.data()};
    for (size_t t = 0; t < targets; ++t) {
      void* out[kOutputs] = {buffers.got[t][0].data(), buffers.got[t][1].data()};
      kernels_[t].f32(in, out, kBlock, 0);
    }
  }

  void Judge(const Buffers& buffers, size_t o, size_t targets) {
    const double* const exact = buffers.exact[o].data();
    // The reference itself is off by some 1e-9 of these ULP.
    const double bound = op_.bound[o] + 1e-6;
    std::vector<double> errors(targets);
    for (size_t t = 0; t < targets; ++t) {
      const float* const got = buffers.got[t][o].data();
      size_t like = 0;  // the first target of the same bits
      while (std::memcmp(buffers.got[like][o].data(), got, kBlock * sizeof(float)) != 0) ++like;
      errors[t] = like < t ? errors[like] : worst_error_(exact, got, kBlock);
      if (errors[t] <= leading_[t][o] && errors[t] <= bound) continue;
      for (size_t i = 0; i < kBlock; ++i) {
        const double error = ErrorOf(exact[i], got[i]);
        if (error > leading_[t][o] || error > bound) {
          Confirm(t, o, buffers.x[i], got[i], error);
        }
      }
    }
  }

  // By MPFR, what leads or breaks the bound.
  void Confirm(size_t t, size_t o, float x, float got, double error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool leads = error > leading_[t][o];
    Column& column = result_.columns[t][o];
    if (!leads && column.wrong > 1000) return;
    if (leads) leading_[t][o] = error;
    const double at = static_cast<double>(x);
    const Verdict verdict = Classify(op_, x, x);
    if (verdict.rule == Rule::kSpecial) {
      error = SameBits(got, static_cast<float>(verdict.special->image[o])) ? 0 : kWrong;
    } else if (verdict.rule == Rule::kFormula) {
      Truth truth(op_, verdict, at, at, result_.mpfr);
      const double exact = truth.Error(o, got);
      if (exact >= 0) error = exact;
    }
    if (error > op_.bound[o]) {
      Complain(op_, kernels_[t].target, o, at, at, static_cast<double>(got), error, column);
    }
    column.Raise(error, at, at);
  }

  const Op& op_;
  const std::vector<Kernel>& kernels_;
  ElementwiseKernel reference_;
  WorstError worst_error_;
  Extent extent_;
  uint64_t tasks_;
  std::mutex mutex_;
  Result& result_;
  // The largest errors against the reference, which MPFR has seen since.
  std::vector<std::array<std::atomic<double>, kOutputs>> leading_;
  std::vector<std::atomic<uint64_t>> samples_;
};

}  // namespace

void Exhaustive(const Op& op, const std::vector<Kernel>& kernels, ElementwiseKernel reference,
                WorstError worst_error, size_t threads, Extent extent, Result& result) {
  AllFloats all(op, kernels, reference, worst_error, extent, result);
  InParallel(
      threads, all.tasks(), [&] { return Buffers(kernels.size()); },
      [&](Buffers& buffers, size_t task) { all.Task(buffers, task); });
  for (size_t t = 0; t < kernels.size(); ++t) {
    for (size_t o = 0; o < kOutputs; ++o) {
      result.columns[t][o].samples = all.samples(t);
      result.columns[t][o].exhaustive = all.samples(t) == uint64_t{1} << 32;
    }
  }
}

}  // namespace pullback::accuracy
