// The truth: formulas of the table, evaluated by MPFR until the digits stand.
#ifndef PULLBACK_TESTS_ACCURACY_EXACT_H_
#define PULLBACK_TESTS_ACCURACY_EXACT_H_

#include <mpfr.h>

#include "table.h"

namespace pullback::accuracy {

struct Big {
  mpfr_t v;
  explicit Big(mpfr_prec_t precision = 128) { mpfr_init2(v, precision); }
  ~Big() { mpfr_clear(v); }
  Big(const Big&) = delete;
  Big& operator=(const Big&) = delete;
};

// Evaluates a node of op's formulas at finite (a, b) to some 80 bits. False where MPFR's range of
// exponents (2^62) or 8192 bits do not suffice to tell. Thread-safe.
bool Evaluate(const Op& op, int node, double a, double b, Big& r);

// Of this thread: MPFR's caches.
void FreeCaches();

}  // namespace pullback::accuracy

#endif  // PULLBACK_TESTS_ACCURACY_EXACT_H_
