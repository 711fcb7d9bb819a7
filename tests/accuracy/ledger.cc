#include "ledger.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <tuple>

namespace pullback::accuracy {
namespace {

// What follows `"key": `; the ledger is written here alone, so that its layout is known.
const char* After(const std::string& line, const char* key) {
  const std::string quoted = '"' + std::string(key) + "\": ";
  const size_t at = line.find(quoted);
  if (at == std::string::npos) throw std::runtime_error("no " + quoted + "in " + line);
  return line.c_str() + at + quoted.size();
}

std::string Text(const std::string& line, const char* key) {
  const char* const text = After(line, key) + 1;
  return {text, std::find(text, line.c_str() + line.size(), '"')};
}

Entry FromJson(const std::string& line) {
  Entry entry;
  entry.op = Text(line, "op");
  entry.dtype = Text(line, "dtype");
  entry.target = Text(line, "target");
  entry.output = Text(line, "output");
  entry.ulp = std::strtod(After(line, "ulp"), nullptr);
  const char* number = After(line, "at") + 1;  // behind [
  for (char* end = nullptr; *number != ']'; number = *end == ',' ? end + 1 : end) {
    entry.at.push_back(std::strtod(number, &end));
    if (end == number) throw std::runtime_error("no number in " + line);
  }
  entry.samples = std::strtoull(After(line, "samples"), nullptr, 10);
  entry.exhaustive = *After(line, "exhaustive") == 't';
  return entry;
}

bool SameKey(const Entry& x, const Entry& y) {
  return x.op == y.op && x.dtype == y.dtype && x.target == y.target && x.output == y.output;
}

}  // namespace

std::string ToJson(const Entry& entry) {
  std::string at;
  char buffer[64];
  for (const double x : entry.at) {
    std::snprintf(buffer, sizeof(buffer), "%s%.*g", at.empty() ? "" : ", ",
                  entry.dtype == "float32" ? 9 : 17, x);
    at += buffer;
  }
  std::string ulp = "null";
  if (std::isfinite(entry.ulp)) {
    std::snprintf(buffer, sizeof(buffer), "%.4f", entry.ulp);
    ulp = buffer;
  }
  return "{\"op\": \"" + entry.op + "\", \"dtype\": \"" + entry.dtype + "\", \"output\": \"" +
         entry.output + "\", \"target\": \"" + entry.target + "\", \"ulp\": " + ulp +
         ", \"at\": [" + at + "], \"samples\": " + std::to_string(entry.samples) +
         ", \"exhaustive\": " + (entry.exhaustive ? "true" : "false") + "}";
}

Ledger Ledger::Read(const std::string& path) {
  Ledger ledger;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line[0] == '{') ledger.entries_.push_back(FromJson(line));
  }
  return ledger;
}

const Entry* Ledger::Find(const std::string& op, const std::string& dtype,
                          const std::string& target, const std::string& output) const {
  const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) {
    return entry.op == op && entry.dtype == dtype && entry.target == target &&
           entry.output == output;
  });
  return found == entries_.end() ? nullptr : &*found;
}

bool Ledger::HasTarget(const std::string& target) const {
  return std::any_of(entries_.begin(), entries_.end(),
                     [&](const Entry& entry) { return entry.target == target; });
}

void Ledger::Put(const Entry& entry) {
  std::erase_if(entries_, [&](const Entry& old) { return SameKey(old, entry); });
  entries_.push_back(entry);
}

void Ledger::Write(const std::string& path, const std::vector<std::string>& ops) const {
  const auto rank = [&](const Entry& entry) {
    return std::find(ops.begin(), ops.end(), entry.op) - ops.begin();
  };
  std::vector<Entry> sorted;
  for (const Entry& entry : entries_) {
    if (rank(entry) < static_cast<ptrdiff_t>(ops.size())) sorted.push_back(entry);
  }
  std::sort(sorted.begin(), sorted.end(), [&](const Entry& x, const Entry& y) {
    // "value" comes before its derivatives.
    const bool x_derivative = x.output != "value", y_derivative = y.output != "value";
    return std::tuple(rank(x), x.dtype, x_derivative, x.output, x.target) <
           std::tuple(rank(y), y.dtype, y_derivative, y.output, y.target);
  });
  const std::string temporary = path + ".new";
  {
    std::ofstream file(temporary);
    file << "[\n";
    for (size_t i = 0; i < sorted.size(); ++i) {
      file << ToJson(sorted[i]) << (i + 1 < sorted.size() ? ",\n" : "\n");
    }
    file << "]\n";
    if (!file.flush()) throw std::runtime_error("cannot write " + temporary);
  }
  std::filesystem::rename(temporary, path);
}

}  // namespace pullback::accuracy
