// How a row of the op tables is written, and how loops enumerate the rows.
//
//   PB_UNARY(square) { y = hn::Mul(x, x); dy = hn::Add(x, x); }
//
// defines the row's Eval, which yields value and derivative(s) of one vector together; `d` is the
// full-vector tag of float or double. It has no side effects, so a loop that ignores one output
// does not pay for it. A _MASKED row's vjp is +0 wherever its derivative is 0, whatever g. A _WIDE
// row's `d` is always a tag of double: for float32 its lanes are converted there and back, and `d`
// then says kForFloat32, so that Eval may leave out what float32 would not show. A
// _WIDE_WITHOUT_FMA row is that only on targets without FMA; with it, Eval gets the float lanes
// themselves.
//
// Each row has its second derivatives next to it:
//
//   PB_UNARY_SECOND(square) { d2y = hn::Set(d, 2); }
//
// of double lanes alone, given what Eval made of them; those of a binary op are daa, dab and dbb.
//
// A table file opens with PB_UNARY_TABLE or PB_BINARY_TABLE and closes with the matching _END; in
// between, __COUNTER__ numbers the rows, so that nothing else may use it there. Then rows are
// UnaryRow<0> ... UnaryRow<kUnaryRows - 1>, likewise BinaryRow; tables are per-ISA code and belong
// inside HWY_NAMESPACE.
#ifndef PULLBACK_CPP_OPS_ROW_H_
#define PULLBACK_CPP_OPS_ROW_H_

#define PB_UNARY_TABLE  \
  template <int kIndex> \
  struct UnaryRow;      \
  constexpr int kUnaryBegin = __COUNTER__ + 1;
#define PB_UNARY_TABLE_END constexpr int kUnaryRows = __COUNTER__ - kUnaryBegin;

#define PB_BINARY_TABLE \
  template <int kIndex> \
  struct BinaryRow;     \
  constexpr int kBinaryBegin = __COUNTER__ + 1;
#define PB_BINARY_TABLE_END constexpr int kBinaryRows = __COUNTER__ - kBinaryBegin;

#define PB_UNARY(name) PB_UNARY_ROW(name, false, false, __COUNTER__)
#define PB_UNARY_MASKED(name) PB_UNARY_ROW(name, true, false, __COUNTER__)
#define PB_UNARY_WIDE(name) PB_UNARY_ROW(name, false, true, __COUNTER__)
#define PB_UNARY_WIDE_WITHOUT_FMA(name) PB_UNARY_ROW(name, false, !HWY_NATIVE_FMA, __COUNTER__)
#define PB_BINARY(name) PB_BINARY_ROW(name, false, false, __COUNTER__)
#define PB_BINARY_MASKED(name) PB_BINARY_ROW(name, true, false, __COUNTER__)
#define PB_BINARY_WIDE(name) PB_BINARY_ROW(name, false, true, __COUNTER__)
#define PB_BINARY_MASKED_WIDE(name) PB_BINARY_ROW(name, true, true, __COUNTER__)

#define PB_UNARY_ROW(name, masked, wide, counter)                             \
  struct name##Second;                                                        \
  template <>                                                                 \
  struct UnaryRow<(counter)-kUnaryBegin> {                                    \
    using Second = name##Second;                                              \
    static constexpr const char* kName = #name;                               \
    static constexpr int kArity = 1;                                          \
    static constexpr bool kMasked = masked;                                   \
    static constexpr bool kWide = wide;                                       \
    template <class D, class V>                                               \
    static HWY_INLINE void Eval(D d, V x, V& y, V& dy);                       \
  };                                                                          \
  template <class D, class V>                                                 \
  HWY_INLINE void UnaryRow<(counter)-kUnaryBegin>::Eval([[maybe_unused]] D d, \
                                                        [[maybe_unused]] V x, V& y, V& dy)

#define PB_UNARY_SECOND(name)                                                    \
  struct name##Second {                                                          \
    template <class D, class V>                                                  \
    static HWY_INLINE void Eval(D d, V x, V y, V dy, V& d2y);                    \
  };                                                                             \
  template <class D, class V>                                                    \
  HWY_INLINE void name##Second::Eval([[maybe_unused]] D d, [[maybe_unused]] V x, \
                                     [[maybe_unused]] V y, [[maybe_unused]] V dy, V& d2y)

#define PB_BINARY_ROW(name, masked, wide, counter)                  \
  struct name##Second;                                              \
  template <>                                                       \
  struct BinaryRow<(counter)-kBinaryBegin> {                        \
    using Second = name##Second;                                    \
    static constexpr const char* kName = #name;                     \
    static constexpr int kArity = 2;                                \
    static constexpr bool kMasked = masked;                         \
    static constexpr bool kWide = wide;                             \
    template <class D, class V>                                     \
    static HWY_INLINE void Eval(D d, V a, V b, V& y, V& da, V& db); \
  };                                                                \
  template <class D, class V>                                       \
  HWY_INLINE void BinaryRow<(counter)-kBinaryBegin>::Eval(          \
      [[maybe_unused]] D d, [[maybe_unused]] V a, [[maybe_unused]] V b, V& y, V& da, V& db)

#define PB_BINARY_SECOND(name)                                                      \
  struct name##Second {                                                             \
    template <class D, class V>                                                     \
    static HWY_INLINE void Eval(D d, V a, V b, V da, V db, V& daa, V& dab, V& dbb); \
  };                                                                                \
  template <class D, class V>                                                       \
  HWY_INLINE void name##Second::Eval([[maybe_unused]] D d, [[maybe_unused]] V a,    \
                                     [[maybe_unused]] V b, [[maybe_unused]] V da,   \
                                     [[maybe_unused]] V db, V& daa, V& dab, V& dbb)

#define PB_LOSS_TABLE   \
  template <int kIndex> \
  struct LossRow;       \
  constexpr int kLossBegin = __COUNTER__ + 1;
#define PB_LOSS_TABLE_END constexpr int kLossRows = __COUNTER__ - kLossBegin;

// A pointwise loss of a prediction z and a target t, with its first two derivatives in z; `domain`
// is the mask of allowed targets, an expression in d, t and parameter. That is a vector of what the
// loss makes of it, or what `made(d, number)` returns: computed once, not for each vector of z.
#define PB_LOSS(name, domain) PB_LOSS_ROW(name, hn::Set, domain, __COUNTER__)
#define PB_LOSS_OF(name, made, domain) PB_LOSS_ROW(name, made, domain, __COUNTER__)

#define PB_LOSS_ROW(name, made, domain, counter)                                                  \
  template <>                                                                                     \
  struct LossRow<(counter)-kLossBegin> {                                                          \
    static constexpr const char* kName = #name;                                                   \
    template <class D>                                                                            \
    static HWY_INLINE auto Made(D d, double number) {                                             \
      return made(d, number);                                                                     \
    }                                                                                             \
    template <class D, class V, class P>                                                          \
    static HWY_INLINE auto Domain([[maybe_unused]] D d, V t,                                      \
                                  [[maybe_unused]] const P& parameter) {                          \
      return domain;                                                                              \
    }                                                                                             \
    template <class D, class V, class P>                                                          \
    static HWY_INLINE void Eval(D d, V z, V t, const P& parameter, V& loss, V& dloss, V& d2loss); \
  };                                                                                              \
  template <class D, class V, class P>                                                            \
  HWY_INLINE void LossRow<(counter)-kLossBegin>::Eval([[maybe_unused]] D d, V z, V t,             \
                                                      [[maybe_unused]] const P& parameter,        \
                                                      V& loss, V& dloss, V& d2loss)

#endif  // PULLBACK_CPP_OPS_ROW_H_
