#include "runtime/probe.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "check.h"
#include "runtime/targets.h"
#include "runtime/threads.h"

namespace pullback {
namespace {

uint64_t PlainSum(const uint8_t* p, size_t bytes) {
  uint64_t sum = 0;
  for (size_t i = 0; i < bytes; i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, p + i, bytes - i < 8 ? bytes - i : 8);
    sum += word;
  }
  return sum;
}

std::vector<uint8_t> Noise(size_t bytes) {
  std::vector<uint8_t> noise(bytes);
  uint64_t state = 1;
  for (uint8_t& byte : noise) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    byte = static_cast<uint8_t>(state >> 56);
  }
  return noise;
}

void TestReadSum() {
  const std::vector<uint8_t> noise = Noise((size_t{3} << 20) + 200);
  std::string error;
  for (const std::string& target : SupportedTargetNames()) {
    CHECK(SetTarget(target, &error));
    for (const int threads : {1, 2, 5}) {
      SetNumThreads(threads);
      for (const size_t offset : std::initializer_list<size_t>{0, 1, 8, 16, 40, 63}) {
        for (size_t bytes = 0; bytes < 1500; bytes += 1 + bytes / 40) {
          // Exactly sized, so that AddressSanitizer sees a read past the end.
          const std::vector<uint8_t> copy(noise.begin(),
                                          noise.begin() + static_cast<long>(offset + bytes));
          uint64_t sum = 1;
          CHECK(ReadSeconds(copy.data() + offset, bytes, &sum) >= 0);
          CHECK(sum == PlainSum(copy.data() + offset, bytes));
        }
        const size_t bytes = noise.size() - offset;
        uint64_t sum = 1;
        CHECK(ReadSeconds(noise.data() + offset, bytes, &sum) > 0);
        CHECK(sum == PlainSum(noise.data() + offset, bytes));
      }
    }
  }
  CHECK(SetTarget("", &error));
}

void TestFiguresArePlausible() {
  SetNumThreads(2);
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{5000}, size_t{8} << 20}) {
    for (const double figure : {MeasureReadBandwidth(bytes), MeasureCopyBandwidth(bytes)}) {
      CHECK(figure > 0 && figure < 1e5);
    }
  }
  for (const FloatType type : {FloatType::kFloat32, FloatType::kFloat64}) {
    const double figure = MeasureFmaPeak(type);
    CHECK(figure > 0.01 && figure < 1e6);
  }
  CHECK(L2CacheBytes() >= (size_t{64} << 10) && L2CacheBytes() <= (size_t{1} << 30));
  CHECK(LastLevelCacheBytes() >= L2CacheBytes() && LastLevelCacheBytes() <= (size_t{64} << 30));
}

}  // namespace
}  // namespace pullback

int main() {
  pullback::TestReadSum();
  pullback::TestFiguresArePlausible();
  return check::Report("probe_test");
}
