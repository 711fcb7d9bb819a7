// The ledger: the largest errors ever measured, one line of JSON each.
#ifndef PULLBACK_TESTS_ACCURACY_LEDGER_H_
#define PULLBACK_TESTS_ACCURACY_LEDGER_H_

#include <cstdint>
#include <string>
#include <vector>

namespace pullback::accuracy {

struct Entry {
  std::string op, dtype, target, output;
  double ulp = 0;          // rounded up to four decimals
  std::vector<double> at;  // where; empty: no error anywhere
  uint64_t samples = 0;
  bool exhaustive = false;
};

std::string ToJson(const Entry& entry);

class Ledger {
 public:
  // A file that does not exist is an empty ledger. Throws std::runtime_error.
  static Ledger Read(const std::string& path);

  const Entry* Find(const std::string& op, const std::string& dtype, const std::string& target,
                    const std::string& output) const;
  bool HasTarget(const std::string& target) const;
  const std::vector<Entry>& entries() const { return entries_; }

  // Replaces the entry of the same op, dtype, target and output.
  void Put(const Entry& entry);

  // In the order of `ops`; entries of others are dropped.
  void Write(const std::string& path, const std::vector<std::string>& ops) const;

 private:
  std::vector<Entry> entries_;
};

}  // namespace pullback::accuracy

#endif  // PULLBACK_TESTS_ACCURACY_LEDGER_H_
