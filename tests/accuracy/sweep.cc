// Accuracy of the shipped elementwise kernels, value and derivatives, on every ISA target.
//
//   accuracy_sweep [quick|full] [options]     see kUsage
//
// What is right, and how right it has to be, comes from the Python table (table.py); MPFR evaluates
// the table's formulas (exact.h), long double sorts out the samples that matter (rough.h).
//
// quick: per op and dtype edges of the format, special points, places where a kernel's output
//   changes its nature, and random points; compared with the ledger of the errors ever measured.
//   Every block again in another order, to see that a lane's bits do not depend on its neighbours.
// full: float32 unary ops over all 2^32 bit patterns, our own float64 kernel of the best target,
//   itself held to MPFR at a million float32 points, being the reference; everything else at
//   10 million points, among them those of quick. --ledger writes what it measured.
//
// Exit status 1: a bound is exceeded, a special point is wrong, an error has grown beyond the
// ledger's, a column drew no samples, or tables disagree.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "exhaustive.h"
#include "judge.h"
#include "kernels/elementwise.h"
#include "ledger.h"
#include "measure.h"
#include "points.h"
#include "rough.h"
#include "runtime/targets.h"
#include "sampled.h"
#include "table.h"

namespace pullback::accuracy {
namespace {

constexpr char kUsage[] =
    "usage: accuracy_sweep [quick|full] [options]\n"
    "  --op NAME        this one; may be repeated\n"
    "  --target NAME    this one only\n"
    "  --dtype NAME     float32 or float64\n"
    "  --samples N      random points per op and dtype (quick: 60 thousand, full: 10 million)\n"
    "  --spots N        float32 points where the float64 reference is held to MPFR (1 million)\n"
    "  --stride N       full: every N-th float32 only\n"
    "  --sparse N       full: the slowest target takes every N-th block of float32 only (8)\n"
    "  --threads N      default: one per CPU\n"
    "  --table FILE     by table.py; default: the one made with this program\n"
    "  --ledger FILE    quick: compares with it (none: does not); full: writes to it\n"
    "  --json           one line of JSON per result\n";

struct Options {
  bool full = false, json = false;
  std::vector<std::string> ops;
  std::string target, dtype;
  uint64_t stride = 1, sparse = 8, samples = 0, spots = 1000000;
  size_t threads = std::max(1u, std::thread::hardware_concurrency());
  std::string table = PULLBACK_ACCURACY_TABLE, ledger;
};

// --- the sweep -----------------------------------------------------------------------------------

std::string OutputName(const Op& op, size_t output) {
  if (!op.second && output == 0) return "value";
  const size_t which = op.second ? output : output - 1;
  const std::string name = op.second ? "second_derivative" : "derivative";
  return op.arity == 1 ? name : name + std::to_string(which);
}

double RoundedUp(double error) { return error == 0 ? 0 : std::ceil(error * 1e4 - 1e-6) / 1e4; }

class Sweep {
 public:
  explicit Sweep(const Options& options)
      : options_(options), ops_(ReadTable(options.table)), ledger_(Ledger::Read(options.ledger)) {
    std::string error;
    for (const std::string& target : SupportedTargetNames()) {
      if (!SetTarget(target, &error)) throw std::runtime_error(error);
      for (size_t shard = 0; shard < kOpShards; ++shard) {
        for (const OpKernels& op : Ops(shard)) {
          for (const bool second : {false, true}) {
            const Method method = second ? Method::kSecondDerivative : Method::kValueAndDerivative;
            const auto& both = op.kernel[static_cast<size_t>(method)];
            kernels_[{op.name, second}].push_back({target, both[0], both[1]});
          }
        }
      }
    }
    SetTarget("auto", &error);
    worst_error_ = GetWorstError();
  }

  bool Run() {
    for (const auto& [key, kernels] : kernels_) {
      const std::string& name = key.first;
      const bool known =
          std::any_of(ops_.begin(), ops_.end(), [&](const Op& op) { return op.name == name; });
      if (!known && Chosen(name)) Fail(name + ": a kernel without a row in the table");
    }
    for (const std::string& name : options_.ops) {
      const bool known =
          std::any_of(ops_.begin(), ops_.end(), [&](const Op& op) { return op.name == name; });
      if (!known) Fail(name + ": no such op");
    }
    if (!options_.json) {
      std::printf("%-18s %-7s %-6s %11s  %s\n", "op", "dtype", "target", "samples",
                  "largest error of value and of derivatives in ULP, and where");
    }
    for (const Op& op : ops_) {
      if (!Chosen(op.name)) continue;
      if (options_.dtype != "float64") Measure<float>(op);
      if (options_.dtype != "float32") Measure<double>(op);
    }
    if (reported_ == 0) Fail("nothing was measured");
    if (!options_.json) std::printf("%s\n", good_ ? "ok" : "FAILED");
    return good_;
  }

 private:
  bool Chosen(const std::string& name) const {
    return options_.ops.empty() ||
           std::find(options_.ops.begin(), options_.ops.end(), name) != options_.ops.end();
  }

  void Fail(const std::string& what) {
    good_ = false;
    progress.Clear();
    std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  }

  template <typename T>
  void Measure(const Op& op) {
    const std::string dtype = sizeof(T) == 4 ? "float32" : "float64";
    const std::vector<Kernel>& all = kernels_[{op.name, op.second}];
    std::vector<Kernel> kernels;
    for (const Kernel& kernel : all) {
      if (options_.target.empty() || kernel.target == options_.target) kernels.push_back(kernel);
    }
    if (kernels.empty()) return Fail(op.name + ": no kernel");
    progress.Start(op.name + (op.second ? "'' " : " ") + dtype);

    std::vector<Point<double>> known;
    for (const Entry& entry : ledger_.entries()) {
      if (entry.op != op.name || entry.dtype != dtype || entry.at.empty()) continue;
      known.push_back({entry.at.front(), entry.at.back()});
    }
    const Sampler<T> sampler(op, all[0].template Get<T>(), known);
    // Second derivatives are those of float64, rounded.
    const bool exhaustive = options_.full && sizeof(T) == 4 && op.arity == 1 && !op.second;
    const uint64_t samples = options_.samples > 0 ? options_.samples
                             : !options_.full     ? 60000
                             : exhaustive         ? 1000000
                                                  : 10000000;
    Result result(kernels.size());
    Sampled(op, kernels, sampler, options_.threads, samples, result);
    if constexpr (sizeof(T) == 4) {
      if (exhaustive) {
        CheckReference(op, all[0], sampler, result);
        Exhaustive(op, kernels, all[0].f64, worst_error_, options_.threads,
                   {options_.stride, options_.sparse}, result);
      }
    }
    progress.Clear();
    Report(op, dtype, kernels, result);
  }

  // The float64 kernel at float32 points: random ones, and those that lead so far.
  void CheckReference(const Op& op, const Kernel& best, const Sampler<float>& sampler,
                      const Result& leaders) {
    constexpr size_t kChunk = 4096;
    Result result(1);
    std::mutex mutex;
    InParallel(
        options_.threads, static_cast<size_t>((options_.spots + kChunk - 1) / kChunk),
        [&] { return Rough(op); },
        [&](Rough& rough, size_t chunk) {
          std::vector<Point<double>> points;
          if (chunk == 0) {
            for (const auto& outputs : leaders.columns) {
              for (const Column& column : outputs) points.push_back({column.at[0], column.at[1]});
            }
          }
          Random random(chunk * 7919 + 5);
          while (points.size() < kChunk) {
            const float x = random() % 4 == 0 ? FromBits<float>(static_cast<uint32_t>(random()))
                                              : sampler.Draw(random).a;
            points.push_back({static_cast<double>(x), static_cast<double>(x)});
          }
          Result part = Snapshot(result, mutex);
          JudgePoints(op, {best}, rough, points, 1, false, part);
          const std::lock_guard<std::mutex> lock(mutex);
          result.Merge(part);
        });
    for (size_t o = 0; o < static_cast<size_t>(op.Outputs()); ++o) {
      const Column& column = result.columns[0][o];
      if (column.samples > 0 && column.wrong == 0 && column.max <= op.bound[o]) continue;
      Fail(op.name + ": the float64 kernel is no reference for float32: " +
           std::to_string(column.max) + " ULP at " + std::to_string(column.at[0]));
    }
    if (result.unsound > 0) Fail(op.name + ": long double is less accurate than it admits");
  }

  void Report(const Op& op, const std::string& dtype, const std::vector<Kernel>& kernels,
              const Result& result) {
    if (result.impure > 0) {
      Fail(op.name + ' ' + dtype +
           ": lanes that depend on their neighbours: " + std::to_string(result.impure));
    }
    if (result.unsound > 0) {
      Fail(op.name + ' ' + dtype +
           ": long double is less accurate than it admits: " + std::to_string(result.unsound));
    }
    for (size_t t = 0; t < kernels.size(); ++t) {
      const std::string& target = kernels[t].target;
      std::string line;
      for (size_t o = 0; o < static_cast<size_t>(op.Outputs()); ++o) {
        const Column& column = result.columns[t][o];
        const std::string name = OutputName(op, o);
        const std::string title = op.name + ' ' + dtype + ' ' + target + ' ' + name;
        Entry entry;
        entry.op = op.name;
        entry.dtype = dtype;
        entry.target = target;
        entry.output = name;
        entry.ulp = RoundedUp(column.max);
        if (column.max > 0) entry.at.assign(column.at, column.at + op.arity);
        entry.samples = column.samples;
        entry.exhaustive = column.exhaustive;
        const bool held = column.samples > 0 && column.wrong == 0 && column.max <= op.bound[o];
        if (column.samples == 0) Fail(title + ": no samples");
        if (column.samples > 0 && !held) {
          Fail(title + ": " + std::to_string(column.max) + " ULP, the table's bound is " +
               std::to_string(op.bound[o]));
        }
        if (options_.full) {
          if (held) ledger_.Put(entry);
        } else {
          Compare(title, entry);
        }
        if (options_.json) std::printf("%s\n", ToJson(entry).c_str());
        char text[120];
        std::snprintf(text, sizeof(text), "  %.4f%s", column.max, held ? "" : "!");
        line += text;
        for (size_t k = 0; k < entry.at.size(); ++k) {
          std::snprintf(text, sizeof(text), "%s%.9g", k == 0 ? " at " : ", ", entry.at[k]);
          line += text;
        }
      }
      ++reported_;
      if (!options_.json) {
        std::printf("%-18s %-7s %-6s %11llu%s\n", op.name.c_str(), dtype.c_str(), target.c_str(),
                    static_cast<unsigned long long>(result.columns[t][0].samples), line.c_str());
      }
    }
    std::fflush(stdout);
    if (options_.full && !options_.ledger.empty()) {
      std::vector<std::string> names;
      for (const Op& known : ops_) names.push_back(known.name);
      ledger_.Write(options_.ledger, names);
    }
  }

  // Of the quick sweep with what was measured before.
  void Compare(const std::string& title, const Entry& now) {
    if (options_.ledger.empty()) return;
    const Entry* const before = ledger_.Find(now.op, now.dtype, now.target, now.output);
    if (before == nullptr) {
      // A target nobody has measured yet is held to the table's bounds alone.
      if (ledger_.HasTarget(now.target)) {
        Fail(title + ": not in the ledger; accuracy_sweep full --op " + now.op + " --ledger " +
             options_.ledger);
      } else if (unmeasured_.insert(now.target).second) {
        std::fprintf(stderr, "%s is not in the ledger: held to the table's bounds alone\n",
                     now.target.c_str());
      }
      return;
    }
    // What was sampled may be beaten by a little. Long double is not sure of the last digits of
    // what it lets pass.
    const double unsure = before->exhaustive ? 1e-9 : 0.005;
    const double slack = before->exhaustive ? 0 : 0.05 * before->ulp;
    if (now.ulp > before->ulp + slack + unsure) {
      Fail(title + ": " + std::to_string(now.ulp) + " ULP, the ledger has " +
           std::to_string(before->ulp));
    } else if (now.ulp > before->ulp + unsure) {
      progress.Clear();
      std::fprintf(stderr, "%s: %.4f ULP, the ledger has %.4f: re-measure\n", title.c_str(),
                   now.ulp, before->ulp);
    }
  }

  const Options& options_;
  std::vector<Op> ops_;
  Ledger ledger_;
  // By op, and whether they compute second derivatives; best target first.
  std::map<std::pair<std::string, bool>, std::vector<Kernel>> kernels_;
  WorstError worst_error_ = nullptr;
  std::set<std::string> unmeasured_;  // targets
  bool good_ = true;
  int reported_ = 0;
};

int Main(int argc, char** argv) {
  Options options;
  bool ledger_given = false;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "quick" || word == "full") {
      options.full = word == "full";
      continue;
    }
    if (word == "--json") {
      options.json = true;
      continue;
    }
    if (i + 1 == argc) {
      std::fputs(kUsage, stderr);
      return 2;
    }
    const std::string value = argv[++i];
    if (word == "--op") {
      options.ops.push_back(value);
    } else if (word == "--target") {
      options.target = value;
    } else if (word == "--dtype" && (value == "float32" || value == "float64")) {
      options.dtype = value;
    } else if (word == "--samples") {
      options.samples = std::strtoull(value.c_str(), nullptr, 10);
    } else if (word == "--spots") {
      options.spots = std::strtoull(value.c_str(), nullptr, 10);
    } else if (word == "--stride") {
      options.stride = std::max<uint64_t>(1, std::strtoull(value.c_str(), nullptr, 10));
    } else if (word == "--sparse") {
      options.sparse = std::max<uint64_t>(1, std::strtoull(value.c_str(), nullptr, 10));
    } else if (word == "--threads") {
      options.threads = std::max<size_t>(1, std::strtoull(value.c_str(), nullptr, 10));
    } else if (word == "--table") {
      options.table = value;
    } else if (word == "--ledger") {
      options.ledger = value == "none" ? "" : value;
      ledger_given = true;
    } else {
      std::fputs(kUsage, stderr);
      return 2;
    }
  }
  if (!ledger_given && !options.full) options.ledger = PULLBACK_ACCURACY_LEDGER;
  return Sweep(options).Run() ? 0 : 1;
}

}  // namespace
}  // namespace pullback::accuracy

int main(int argc, char** argv) {
  try {
    return pullback::accuracy::Main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "FAILED: %s\n", error.what());
    return 1;
  }
}
