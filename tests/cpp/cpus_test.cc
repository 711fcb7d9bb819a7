#include "runtime/cpus.h"

#include <cmath>

#include "check.h"

namespace pullback {
namespace {

void TestQuota() {
  const int all = AvailableCpus(1e9);
  CHECK(all >= 1);
  CHECK(AvailableCpus(0.5) == 1);
  CHECK(AvailableCpus(1.0) == 1);
  CHECK(AvailableCpus(all) == all);
  CHECK(AvailableCpus(all - 0.5) == all);
  CHECK(AvailableCpus(all + 0.5) == all);
}

void TestThisMachine() {
  CHECK(AvailableCpus() >= 1);
  CHECK(AvailableCpus() <= std::ceil(CgroupCpuQuota()));
}

}  // namespace
}  // namespace pullback

int main() {
  pullback::TestQuota();
  pullback::TestThisMachine();
  return check::Report("cpus_test");
}
