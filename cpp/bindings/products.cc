// Matrix products, layers and forms: from NumPy's shapes and strides to kernels.
#include "bindings/products.h"

#include <algorithm>
#include <array>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "bindings/call.h"
#include "bindings/elementwise.h"
#include "bindings/method.h"
#include "bindings/operands.h"
#include "bindings/results.h"
#include "kernels/forms.h"
#include "kernels/linear.h"
#include "kernels/matmul.h"
#include "runtime/kept_memory.h"
#include "runtime/partition.h"

namespace pullback {
namespace {

// More multiplications than this are done without the GIL.
constexpr double kReleaseGil = 1e5;

// Thrown with an exception of Python's set.
struct Raised {};

template <class Kernel>
void Run(double work, const Kernel& kernel) {
  if (!RunKernel(work > kReleaseGil, kernel)) throw Raised();
}

// --- shapes --------------------------------------------------------------------------------------

// What an operand or a result has to be, as "(..., m?, k)": axes by letter, of which those that may
// lack have a question mark, and a batch in front.
struct Axes {
  bool batch = false;
  size_t count = 0;
  std::array<char, 2> letter{};
  std::array<bool, 2> may_lack{};
};

constexpr size_t kMostOperands = 3;

// The groups of "(..., k), (k, n), (n) -> (..., n)", of which the last one is the result.
struct ShapeRule {
  std::array<Axes, kMostOperands + 1> groups;
  size_t operands = 0;

  explicit ShapeRule(std::string_view text) {
    Axes* group = groups.data() - 1;
    for (const char c : text) {
      if (c == '(') {
        operands = static_cast<size_t>(++group - groups.data());
      } else if (c == '.') {
        group->batch = true;
      } else if (c == '?') {
        group->may_lack[group->count - 1] = true;
      } else if (c >= 'a' && c <= 'z') {
        group->letter[group->count++] = c;
      }
    }
  }

  const Axes& result() const { return groups[operands]; }
};

// Axes in front of matrices: those of a stack of cotangents, then the batch that operands broadcast
// to.
struct Batch {
  size_t axes = 0, stack = 0;
  std::array<npy_intp, kMaxBatchAxes> extent;

  Batch() {}  // extents as they are

  bool Broadcast(const npy_intp* with, size_t count) {
    if (count > kMaxBatchAxes) return false;
    if (count > axes) {
      std::copy_backward(extent.data(), extent.data() + axes, extent.data() + count);
      std::fill_n(extent.begin(), count - axes, 1);
      axes = count;
    }
    npy_intp* const own = extent.data() + (axes - count);
    for (size_t i = 0; i < count; ++i) {
      if (own[i] != with[i] && own[i] != 1 && with[i] != 1) return false;
      if (own[i] == 1) own[i] = with[i];
    }
    return true;
  }

  bool Stack(const npy_intp* in_front, size_t count) {
    if (axes + count > kMaxBatchAxes) return false;
    std::copy_backward(extent.data(), extent.data() + axes, extent.data() + axes + count);
    std::copy_n(in_front, count, extent.begin());
    axes += count;
    stack = count;
    return true;
  }
};

// --- arrays as kernels see them ------------------------------------------------------------------

// A stride that is whole elements; by shifts, since divisions take longer.
ptrdiff_t InElements(npy_intp bytes, npy_intp item) {
  return item == sizeof(double) ? bytes / ptrdiff_t{sizeof(double)}
                                : bytes / ptrdiff_t{sizeof(float)};
}

// An array, or memory as one; strides in bytes. False where there is none.
struct Strided {
  char* data = nullptr;
  size_t ndim = 0;
  const npy_intp* shape = nullptr;
  const npy_intp* stride = nullptr;
  npy_intp item = 0;
  PyArrayObject* array = nullptr;

  explicit operator bool() const { return item != 0; }
  npy_intp last() const { return shape[ndim - 1]; }
  bool HasShape(size_t axes, const npy_intp* extents) const {
    return ndim == axes && std::equal(extents, extents + axes, shape);
  }
  ptrdiff_t Step(size_t axis) const { return InElements(stride[axis], item); }
};

Strided AsStrided(PyArrayObject* array) {
  if (array == nullptr) return {};
  return {PyArray_BYTES(array),    static_cast<size_t>(PyArray_NDIM(array)),
          PyArray_DIMS(array),     PyArray_STRIDES(array),
          PyArray_ITEMSIZE(array), array};
}

// Which of the axes of a matrix an array ends in.
enum Ends : unsigned { kInNone = 0, kInColumns = 1, kInRows = 2, kInBoth = 3 };

// An array as matrices in a batch; strides in elements.
struct Matrices {
  char* data = nullptr;
  size_t rows = 1, cols = 1;
  ptrdiff_t row = 0, col = 0;
  size_t axes = 0;   // of the batch
  size_t stack = 0;  // of which so many, or none, are the stack's
  // Their extents, and strides in bytes of such an item; null for one at most, as follows.
  const npy_intp* extents = nullptr;
  const npy_intp* strides = nullptr;
  npy_intp item = 0;
  npy_intp extent = 1;
  ptrdiff_t stride = 0;

  npy_intp Extent(size_t axis) const { return extents == nullptr ? extent : extents[axis]; }
  ptrdiff_t Stride(size_t axis) const {
    return extents == nullptr ? stride : InElements(strides[axis], item);
  }

  Matrices Transposed() const {
    Matrices t = *this;
    std::swap(t.rows, t.cols);
    std::swap(t.row, t.col);
    return t;
  }

  bool HasPlainRows() const { return rows == 0 || cols <= 1 || col == 1; }

  // One of a stack that is a single axis.
  size_t StackSize() const { return axes == 0 ? 1 : static_cast<size_t>(extent); }
  Matrix OfStack(size_t index) const {
    return {data + static_cast<ptrdiff_t>(index) * stride * item, row, col};
  }
};

Matrices Seen(const Strided& array, unsigned ends, size_t stack = 0) {
  Matrices x;
  size_t axis = array.ndim;
  // The stride of an axis of length 1 means nothing, and may be anything.
  const auto take = [&](size_t& n, ptrdiff_t& stride) {
    n = static_cast<size_t>(array.shape[--axis]);
    if (n > 1) stride = array.Step(axis);
  };
  if ((ends & kInColumns) != 0) take(x.cols, x.col);
  if ((ends & kInRows) != 0) take(x.rows, x.row);
  x.data = array.data;
  x.axes = axis;
  x.stack = stack;
  x.extents = array.shape;
  x.strides = array.stride;
  x.item = array.item;
  return x;
}

// Axes as a single one; false where their strides do not allow that.
bool Merge(const Strided& array, size_t begin, size_t end, npy_intp& n, ptrdiff_t& stride) {
  n = 1;
  stride = 0;
  for (size_t axis = end; axis-- > begin;) {
    const npy_intp more = array.shape[axis];
    if (more == 0) {
      n = 0;
      return true;
    }
    if (more == 1) continue;
    if (n > 1 && array.Step(axis) != n * stride) return false;
    if (n == 1) stride = array.Step(axis);
    n *= more;
  }
  return true;
}

// The array as a stack of matrices: its stack as one axis, and all but its last axis, or all, as
// rows. False where their strides do not allow that.
bool Flatten(const Strided& array, unsigned ends, size_t stack, Matrices& flat) {
  const size_t end = array.ndim - (ends == kInColumns ? 1 : 0);
  npy_intp rows, cols;
  if (!Merge(array, stack, end, rows, flat.row) || !Merge(array, end, array.ndim, cols, flat.col) ||
      !Merge(array, 0, stack, flat.extent, flat.stride)) {
    return false;
  }
  flat.data = array.data;
  flat.item = array.item;
  flat.rows = static_cast<size_t>(rows);
  flat.cols = static_cast<size_t>(cols);
  flat.axes = flat.stack = stack > 0 ? 1 : 0;
  return true;
}

// Memory for what comes in between: some at hand, and more where that is not enough.
class Scratch {
 public:
  Scratch() {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    for (void* const memory : std::span(more_.data(), count_)) GiveMemory(memory);
  }

  // Uninitialised; nullptr where there is none.
  void* Take(size_t bytes) {
    bytes = RoundUp(bytes, kAlignment);
    if (used_ + bytes <= kAtHand) return std::exchange(used_, used_ + bytes) + at_hand_;
    void* const memory = count_ < kMost ? TakeMemory(bytes) : nullptr;
    if (memory != nullptr) more_[count_++] = memory;
    return memory;
  }

 private:
  static constexpr size_t kAtHand = 1024, kAlignment = 64, kMost = 8;
  alignas(kAlignment) char at_hand_[kAtHand];
  size_t used_ = 0;
  std::array<void*, kMost> more_;
  size_t count_ = 0;
};

// --- products ------------------------------------------------------------------------------------

// A job: products of matrices in a batch.
class Products {
 public:
  Products(DType dtype, const Batch& batch) : dtype_(dtype), batch_(batch) {}

  // c = or += a b; the batch axes that c has as 1, or lacks, are summed.
  void Append(const Matrices& a, const Matrices& b, const Matrices& c, bool add = false) {
    Product& product = products_[count_++];
    product.m = a.rows;
    product.n = b.cols;
    product.k = a.cols;
    product.a = {a.data, a.row, a.col};
    product.b = {b.data, b.row, b.col};
    product.c = {c.data, c.row, c.col};
    product.add = add;
    product.fold_axes = product.batch_axes = 0;
    double work = static_cast<double>(a.rows) * static_cast<double>(std::max(a.cols, size_t{1})) *
                  static_cast<double>(b.cols);
    for (size_t axis = batch_.axes; axis-- > 0;) {
      BatchAxis x{static_cast<size_t>(batch_.extent[axis]), StrideOf(a, axis), StrideOf(b, axis),
                  StrideOf(c, axis)};
      if (x.n == 1) continue;
      work *= static_cast<double>(x.n);
      if (ExtentOf(c, axis) == 1) {
        Sum(product, x);
      } else if (size_t& axes = product.batch_axes;
                 axes > 0 && Continues(x, product.batch[axes - 1])) {
        product.batch[axes - 1].n *= x.n;
      } else {
        product.batch[axes++] = x;
      }
    }
    work_ += work;
    // Built from the innermost axis outwards.
    std::reverse(product.batch.begin(),
                 product.batch.begin() + static_cast<ptrdiff_t>(product.batch_axes));
  }

  void Run() {
    const std::span<const Product> products(products_.data(), count_);
    pullback::Run(work_, [&](Poll* poll) { return Matmul(dtype_, products, poll); });
    count_ = 0;
    work_ = 0;
  }

 private:
  // Which of its axes is one of the batch; as many as it has where it repeats along that.
  size_t AxisOf(const Matrices& x, size_t axis) const {
    if (axis < batch_.stack) return x.stack > 0 ? axis : x.axes;
    const size_t from_behind = batch_.axes - axis;
    return from_behind > x.axes - x.stack ? x.axes : x.axes - from_behind;
  }

  npy_intp ExtentOf(const Matrices& x, size_t axis) const {
    const size_t own = AxisOf(x, axis);
    return own == x.axes ? 1 : x.Extent(own);
  }

  ptrdiff_t StrideOf(const Matrices& x, size_t axis) const {
    const size_t own = AxisOf(x, axis);
    return own == x.axes || x.Extent(own) == 1 ? 0 : x.Stride(own);
  }

  static bool Continues(const BatchAxis& outer, const BatchAxis& inner) {
    const auto n = static_cast<ptrdiff_t>(inner.n);
    return outer.a == n * inner.a && outer.b == n * inner.b && outer.c == n * inner.c;
  }

  // Merges a summed axis into the contracted one, or into the last one summed, if it can.
  static void Sum(Product& product, const BatchAxis& x) {
    size_t& sums = product.fold_axes;
    const auto k = static_cast<ptrdiff_t>(product.k);
    if (sums == 0 && (k == 1 || (x.a == k * product.a.col && x.b == k * product.b.row))) {
      if (k == 1) {
        product.a.col = x.a;
        product.b.row = x.b;
      }
      product.k *= x.n;
    } else if (sums > 0 && Continues(x, product.folds[sums - 1])) {
      product.folds[sums - 1].n *= x.n;
    } else {
      product.folds[sums++] = x;
    }
  }

  DType dtype_;
  const Batch& batch_;
  double work_ = 0;
  std::array<Product, 4> products_;
  size_t count_ = 0;
};

// --- a call --------------------------------------------------------------------------------------

enum class Way : uint8_t { kValue, kVjp, kJvp, kValueAndGrad };
constexpr std::string_view kWays[] = {"value", "vjp", "jvp", "value_and_grad"};

class Call;

struct ProductRow {
  const char* name;
  const char* signature;
  size_t may_lack;  // the operand that may be None; none where that is not one of them
  // Each fills the outputs.
  void (*value)(Call& call);
  void (*vjp)(Call& call);
  void (*jvp)(Call& call);
  void (*value_and_grad)(Call& call);  // of a result without axes; null for none
};

// Arguments that fit each other, and the outputs.
class Call {
 public:
  // `checked` says that Python has looked at the arguments: outputs lie apart, and a single vector
  // may be a batch of one.
  Call(const ProductRow& row, const ShapeRule& rule, Way way, bool checked)
      : row_(row), rule_(rule), way_(way), checked_(checked) {}

  // How many arrays the method takes.
  static size_t Arrays(size_t operands, Way way) {
    return operands + (way == Way::kVjp ? 1 : way == Way::kJvp ? operands : 0);
  }

  // False, perhaps with an exception set, for what Python has to look at.
  bool Take(PyObject* const* given, PyObject* activation, const Wrt& wrt) {
    const size_t operands = rule_.operands;
    wrt_ = wrt;
    activation_ = activation == nullptr ? nullptr : UnaryOpOf(activation);
    if (activation != nullptr && activation_ == nullptr) return false;
    if (!x_.Take(given, Arrays(operands, way_), Strides::kAny)) return false;
    for (size_t i = 0; i < x_.count(); ++i) {
      if (x_[i] != nullptr && !HasWholeStrides(AsStrided(x_[i]))) return false;
    }
    if (!BindOperands()) return false;
    bool any = way_ != Way::kJvp;
    if (way_ == Way::kVjp && (x_[operands] == nullptr || !BindCotangent(given[operands]))) {
      return false;
    }
    for (size_t i = operands; way_ == Way::kJvp && i < x_.count(); ++i) {
      if (x_[i] == nullptr) continue;
      any = true;
      const Strided primal = AsStrided(x_[i - operands]);
      if (!primal) return false;
      if (IsWeak(given[i]) && primal.ndim > 0 && !Fill(i, primal.ndim, primal.shape)) return false;
      if (!AsStrided(x_[i]).HasShape(primal.ndim, primal.shape)) return false;
    }
    const bool is_one = checked_ ? std::all_of(shape_.data(), shape_.data() + ndim_,
                                               [](npy_intp n) { return n == 1; })
                                 : ndim_ == 0;
    return any && (way_ != Way::kValueAndGrad || is_one);
  }

  // Finds room for the results. False, perhaps with an exception set, where Python has to look at
  // what is given: null and None are new arrays.
  bool Place(PyObject* const* given) {
    if (way_ != Way::kVjp && !PlaceResult(given[0])) return false;
    if (way_ == Way::kValue || way_ == Way::kJvp) return true;
    bool any = false;
    for (size_t i = 0; i < wrt_.count; ++i) {
      const size_t k = wrt_.operands[i];
      PyObject* const out = given[way_ == Way::kVjp ? i : i + 1];
      const Strided operand = AsStrided(x_[k]);
      if (!operand) {
        if (out != nullptr && out != Py_None) return false;
        continue;
      }
      any = true;
      std::array<npy_intp, NPY_MAXDIMS> shape;
      const size_t ndim = batch_.stack + operand.ndim;
      if (ndim > NPY_MAXDIMS) return false;
      std::copy_n(batch_.extent.begin(), batch_.stack, shape.begin());
      std::copy_n(operand.shape, operand.ndim, shape.data() + batch_.stack);
      if (!PlaceOne(k, ndim, shape.data(), out)) return false;
    }
    return any;
  }

  // Throws Raised.
  void Compute() {
    switch (way_) {
      case Way::kValue:
        row_.value(*this);
        break;
      case Way::kVjp:
        row_.vjp(*this);
        break;
      case Way::kJvp:
        row_.jvp(*this);
        break;
      case Way::kValueAndGrad:
        row_.value_and_grad(*this);
        break;
    }
    for (const auto& [from, to] : std::span(copies_.data(), copy_count_)) {
      if (PyArray_CopyInto(to, from) != 0) throw Raised();
    }
  }

  // The value or the tangent, a new one without axes as a scalar. Once.
  PyObject* Result() {
    if (outs_[kResult]) return outs_[kResult].release();
    const Ref descr(reinterpret_cast<PyObject*>(PyArray_DescrFromType(TypeNumber(dtype()))));
    return PyArray_Scalar(number_, reinterpret_cast<PyArray_Descr*>(descr.get()), nullptr);
  }

  PyObject* Cotangents() const {
    std::array<PyObject*, kMostOperands> arrays;
    for (size_t i = 0; i < kMostOperands; ++i) arrays[i] = outs_[i] ? outs_[i].get() : Py_None;
    return wrt_.Pack(arrays.data());
  }

  // --- what computes looks at ---

  DType dtype() const { return x_.dtype(); }
  const Batch& batch() const { return batch_; }
  const OpKernels* activation() const { return activation_; }
  Strided operand(size_t i) const { return AsStrided(x_[i]); }
  Strided tangent(size_t i) const { return AsStrided(x_[rule_.operands + i]); }
  Strided cotangent() const { return AsStrided(x_[rule_.operands]); }
  Strided result() const { return result_; }
  Strided out(size_t i) const { return AsStrided(AsArray(outs_[i].get())); }  // if it is wanted

  // Whether vectors repeat along the batch.
  bool Repeats(const Strided& vectors) const {
    const size_t axes = batch_.axes - batch_.stack;
    return vectors.ndim != axes + 1 ||
           !std::equal(vectors.shape, vectors.shape + axes, batch_.extent.data() + batch_.stack);
  }

  // The stack of cotangents as one axis.
  Batch FlatStack() const {
    Batch flat;
    if (batch_.stack > 0) {
      npy_intp size = 1;
      for (size_t i = 0; i < batch_.stack; ++i) size *= batch_.extent[i];
      flat.Stack(&size, 1);
    }
    return flat;
  }

  // An array for what comes in between, in C order: the stack's axes if it is `stacked`, the batch
  // of vectors, and a last axis.
  Strided New(const Strided& vectors, npy_intp last, bool stacked = false) {
    const size_t stack = stacked ? batch_.stack : 0, ndim = stack + vectors.ndim;
    auto* const shape = static_cast<npy_intp*>(Take(2 * ndim * sizeof(npy_intp)));
    npy_intp* const stride = shape + ndim;
    std::copy_n(batch_.extent.begin(), stack, shape);
    std::copy_n(vectors.shape, vectors.ndim - 1, shape + stack);
    shape[ndim - 1] = last;
    npy_intp bytes = vectors.item;
    for (size_t axis = ndim; axis-- > 0;) {
      stride[axis] = bytes;
      bytes *= shape[axis];
    }
    return {static_cast<char*>(Take(static_cast<size_t>(bytes))),
            ndim,
            shape,
            stride,
            vectors.item,
            nullptr};
  }

  // An array as a stack of matrices with rows of its last axis; a copy where its strides, or rows
  // that have to be `plain`, do not allow that.
  Matrices From(const Strided& array, bool plain = false, unsigned ends = kInColumns,
                size_t stack = 0) {
    Matrices flat;
    if (!Flatten(array, ends, stack, flat) || (plain && !flat.HasPlainRows())) {
      Flatten(Keep(PyArray_NewCopy(array.array, NPY_CORDER)), ends, stack, flat);
    }
    if (plain) flat.col = 1;
    return flat;
  }

  // The same of an output, which is written once all is computed where it takes a copy.
  Matrices To(const Strided& array, bool plain = false, unsigned ends = kInColumns,
              size_t stack = 0) {
    Matrices flat;
    if (!Flatten(array, ends, stack, flat) || (plain && !flat.HasPlainRows())) {
      const Strided copy = Keep(NewArray(static_cast<int>(array.ndim), array.shape, dtype()));
      copies_[copy_count_++] = {copy.array, array.array};
      Flatten(copy, ends, stack, flat);
    }
    if (plain) flat.col = 1;
    return flat;
  }

 private:
  static constexpr size_t kResult = kMostOperands;
  static constexpr size_t kMostKept = 8;

  static bool HasWholeStrides(const Strided& array) {
    for (size_t axis = 0; axis < array.ndim; ++axis) {
      if (array.shape[axis] > 1 && (array.stride[axis] & (array.item - 1)) != 0) return false;
    }
    return true;
  }

  bool Fill(size_t i, size_t ndim, const npy_intp* shape) {
    return x_.Fill(i, static_cast<int>(ndim), shape);
  }

  // The operands' shapes against the rule, which gives the result's.
  bool BindOperands() {
    constexpr npy_intp kUnknown = -1;
    std::array<npy_intp, 26> extents;
    extents.fill(kUnknown);
    for (size_t i = 0; i < rule_.operands; ++i) {
      const Strided array = AsStrided(x_[i]);
      if (!array) {
        if (i != row_.may_lack) return false;
        continue;
      }
      const Axes& axes = rule_.groups[i];
      const bool lacks = array.ndim < axes.count;
      size_t count = 0;
      for (size_t k = 0; k < axes.count; ++k) count += lacks && axes.may_lack[k] ? 0 : 1;
      if (array.ndim < count || ((lacks || !axes.batch) && array.ndim != count)) return false;
      const size_t before = array.ndim - count;
      const npy_intp* dim = array.shape + before;
      for (size_t k = 0; k < axes.count; ++k) {
        if (lacks && axes.may_lack[k]) continue;
        npy_intp& extent = extents[static_cast<size_t>(axes.letter[k] - 'a')];
        if (extent != kUnknown && extent != *dim) return false;
        extent = *dim++;
      }
      if (!batch_.Broadcast(array.shape, before)) return false;
    }
    const Axes& axes = rule_.result();
    ndim_ = batch_.axes;
    std::copy_n(batch_.extent.begin(), ndim_, shape_.begin());
    for (size_t k = 0; k < axes.count; ++k) {
      const npy_intp extent = extents[static_cast<size_t>(axes.letter[k] - 'a')];
      if (extent != kUnknown) shape_[ndim_++] = extent;
    }
    return true;
  }

  bool BindCotangent(PyObject* given) {
    const size_t i = rule_.operands;
    if (IsWeak(given) && ndim_ > 0 && !Fill(i, ndim_, shape_.data())) return false;
    const Strided g = AsStrided(x_[i]);
    if (g.ndim < ndim_) return false;
    const size_t stack = g.ndim - ndim_;
    return std::equal(shape_.data(), shape_.data() + ndim_, g.shape + stack) &&
           batch_.Stack(g.shape, stack);
  }

  bool PlaceResult(PyObject* given) {
    if (ndim_ == 0 && (given == nullptr || given == Py_None)) {
      result_ = {number_, 0, nullptr, nullptr, static_cast<npy_intp>(ItemSize(dtype())), nullptr};
      return true;
    }
    if (!PlaceOne(kResult, ndim_, shape_.data(), given)) return false;
    result_ = AsStrided(AsArray(outs_[kResult].get()));
    return true;
  }

  bool PlaceOne(size_t i, size_t ndim, const npy_intp* shape, PyObject* given) {
    if (given == nullptr || given == Py_None) {
      outs_[i] = Ref(NewArray(static_cast<int>(ndim), shape, dtype()));
      return static_cast<bool>(outs_[i]);
    }
    if (KernelArray(given) != dtype()) return false;
    PyArrayObject* const array = AsArray(given);
    const Strided out = AsStrided(array);
    if (!out.HasShape(ndim, shape) || !PyArray_ISWRITEABLE(array) || !HasWholeStrides(out)) {
      return false;
    }
    if (!checked_ && !LiesApart(array)) return false;
    outs_[i] = Ref(Py_NewRef(given));
    given_[i] = true;
    return true;
  }

  // Whether an output meets neither itself, nor an operand, nor another output.
  bool LiesApart(PyArrayObject* out) const {
    for (size_t k = 0; k < x_.count(); ++k) {
      if (x_[k] != nullptr && Overlap(out, x_[k])) return false;
    }
    for (size_t k = 0; k <= kResult; ++k) {
      if (given_[k] && Overlap(out, AsArray(outs_[k].get()))) return false;
    }
    return ElementsApart(out);
  }

  Strided Keep(PyObject* array) {
    if (array == nullptr) throw Raised();
    kept_[kept_count_] = Ref(array);
    return AsStrided(AsArray(kept_[kept_count_++].get()));
  }

  void* Take(size_t bytes) {
    void* const memory = scratch_.Take(bytes);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
  }

  const ProductRow& row_;
  const ShapeRule& rule_;
  Way way_;
  bool checked_;
  Wrt wrt_;
  const OpKernels* activation_ = nullptr;
  PlainOperands x_;
  Batch batch_;
  size_t ndim_ = 0;
  std::array<npy_intp, NPY_MAXDIMS + 2> shape_;
  std::array<Ref, kMostOperands + 1> outs_;
  std::array<bool, kMostOperands + 1> given_{};
  Strided result_;
  alignas(double) char number_[sizeof(double)];  // a new result without axes
  Scratch scratch_;
  std::array<Ref, kMostKept> kept_;
  size_t kept_count_ = 0;
  std::array<std::pair<PyArrayObject*, PyArrayObject*>, kMostOperands + 1> copies_;
  size_t copy_count_ = 0;
};

// --- matmul --------------------------------------------------------------------------------------

// One-dimensional operands are a row on the left and a column on the right.
Matrices Left(const Call& call, const Strided& array, size_t stack = 0) {
  return Seen(array, call.operand(0).ndim > 1 ? kInBoth : kInColumns, stack);
}

Matrices Right(const Call& call, const Strided& array, size_t stack = 0) {
  return Seen(array, call.operand(1).ndim > 1 ? kInBoth : kInRows, stack);
}

Matrices OfProduct(const Call& call, const Strided& array, size_t stack = 0) {
  const unsigned rows = call.operand(0).ndim > 1 ? kInRows : kInNone;
  const unsigned columns = call.operand(1).ndim > 1 ? kInColumns : kInNone;
  return Seen(array, rows | columns, stack);
}

void MatmulValue(Call& call) {
  Products products(call.dtype(), call.batch());
  products.Append(Left(call, call.operand(0)), Right(call, call.operand(1)),
                  OfProduct(call, call.result()));
  products.Run();
}

void MatmulVjp(Call& call) {
  const size_t stack = call.batch().stack;
  const Matrices g = OfProduct(call, call.cotangent(), stack);
  Products products(call.dtype(), call.batch());
  if (const Strided out = call.out(0)) {
    products.Append(g, Right(call, call.operand(1)).Transposed(), Left(call, out, stack));
  }
  if (const Strided out = call.out(1)) {
    products.Append(Left(call, call.operand(0)).Transposed(), g, Right(call, out, stack));
  }
  products.Run();
}

void MatmulJvp(Call& call) {
  const Matrices out = OfProduct(call, call.result());
  const Strided tA = call.tangent(0);
  const Strided tB = call.tangent(1);
  Products products(call.dtype(), call.batch());
  if (tA) products.Append(Left(call, tA), Right(call, call.operand(1)), out);
  if (tB) {
    products.Append(Left(call, call.operand(0)), Right(call, tB), out, static_cast<bool>(tA));
  }
  products.Run();
}

// --- the linear layer ----------------------------------------------------------------------------

Matrix AsMatrix(const Matrices& x) { return {x.data, x.row, x.col}; }

// All that is not a cotangent or a tangent.
LinearLayer Layer(Call& call, const Matrices& X, const Matrices& W) {
  const bool biased = static_cast<bool>(call.operand(2));
  return {call.dtype(),
          X.rows,
          X.cols,
          W.cols,
          AsMatrix(X),
          AsMatrix(W),
          biased ? call.From(call.operand(2), true).data : nullptr,
          call.activation()};
}

LinearLayer Layer(Call& call) {
  return Layer(call, call.From(call.operand(0)), call.From(call.operand(1)));
}

void LinearValueOf(Call& call) {
  const LinearLayer layer = Layer(call);
  const Matrix out = AsMatrix(call.To(call.result(), true));
  Run(Multiplications(layer), [&](Poll* poll) { return LinearValue(layer, out, poll); });
}

void LinearVjpOf(Call& call) {
  const LinearLayer layer = Layer(call);
  const size_t stack = call.batch().stack;
  const Matrices g = call.From(call.cotangent(), true, kInColumns, stack);
  std::array<Matrices, 3> outs;
  for (size_t i = 0; i < 3; ++i) {
    if (call.out(i)) outs[i] = call.To(call.out(i), i == 2, kInColumns, stack);
  }
  // With X W + b anew for each cotangent: what is there for one is gone from the cache.
  for (size_t s = 0; s < g.StackSize(); ++s) {
    std::array<Matrix, 3> to{};
    for (size_t i = 0; i < 3; ++i) {
      if (outs[i].data != nullptr) to[i] = outs[i].OfStack(s);
    }
    const LinearCotangents cotangents{g.OfStack(s), to[0], to[1], to[2].data};
    Run(Multiplications(layer), [&](Poll* poll) { return LinearVjp(layer, cotangents, poll); });
  }
}

void LinearJvpOf(Call& call) {
  const Matrices out = call.To(call.result(), true);
  Matrices X = call.From(call.operand(0)), W = call.From(call.operand(1));
  const LinearLayer layer = Layer(call, X, W);
  const Strided tX = call.tangent(0);
  const Strided tW = call.tangent(1);
  const Batch none;
  Products products(call.dtype(), none);
  if (tX) products.Append(call.From(tX), W, out);
  if (tW) products.Append(X, call.From(tW), out, static_cast<bool>(tX));
  if (!tX && !tW) {  // sums of no terms
    X.cols = W.rows = 0;
    products.Append(X, W, out);
  }
  products.Run();
  const void* const tb = call.tangent(2) ? call.From(call.tangent(2), true).data : nullptr;
  if (tb == nullptr && layer.activation == nullptr) return;
  Run(Multiplications(layer),
      [&](Poll* poll) { return LinearTangent(layer, tb, AsMatrix(out), poll); });
}

// --- forms ---------------------------------------------------------------------------------------

// to[s, i] = g[s, i] * from[i], for rows.
void Scale(Call& call, const Matrices& g, const Matrices& from, const Matrices& to) {
  // The cotangents of a stack are rows of numbers.
  const RowScaling scaling{
      call.dtype(),   g.StackSize(), from.rows, from.cols, {g.data, g.stride, g.row},
      AsMatrix(from), AsMatrix(to),  to.stride};
  Run(static_cast<double>(scaling.count * scaling.rows) * static_cast<double>(scaling.cols),
      [&](Poll* poll) { return ScaleRows(scaling, poll); });
}

// The value and, where wanted, the gradients by both vectors, or their sum as one: in one pass over
// the matrix.
void OnePass(Call& call, Strided u, const Strided& X, Strided v, Strided by_u, Strided by_v) {
  Matrices matrix = Seen(X, kInBoth);
  if (!matrix.HasPlainRows() && matrix.Transposed().HasPlainRows()) {
    matrix = matrix.Transposed();
    std::swap(u, v);
    std::swap(by_u, by_v);
  } else {
    matrix = call.From(X, true);
  }
  const auto place = [&](const Strided& out) { return out ? call.To(out, true).data : nullptr; };
  void* const to_u = place(by_u);
  void* const to_v = by_v.array == by_u.array ? to_u : place(by_v);
  const BilinearForm form{call.dtype(),
                          matrix.rows,
                          matrix.cols,
                          matrix.data,
                          matrix.row,
                          call.From(u, true).data,
                          call.From(v, true).data};
  Run(static_cast<double>(form.rows) * static_cast<double>(form.cols),
      [&](Poll* poll) { return BilinearGradients(form, call.result().data, to_u, to_v, poll); });
}

// out = u v^T, for vectors.
void Outer(Call& call, const Strided& u, const Strided& v, const Strided& out) {
  if (!out) return;
  Products products(call.dtype(), call.batch());
  products.Append(Seen(u, kInRows), Seen(v, kInColumns), Seen(out, kInBoth));
  products.Run();
}

// Sums of forms u^T X v into the result: first vectors times matrices, then scalar products.
class Forms {
 public:
  explicit Forms(Call& call)
      : call_(call), products_(call.dtype(), none_), dots_(call.dtype(), call.batch()) {}

  // u^T X v, where X meets the fewer vectors.
  void Append(const Strided& u, const Strided& X, const Strided& v) {
    const auto count = [](const Strided& x) {
      return PyArray_MultiplyList(x.shape, static_cast<int>(x.ndim) - 1);
    };
    const Matrices matrix = Seen(X, kInBoth);
    if (count(u) < count(v)) {
      Append(u, matrix, v);
    } else {
      Append(v, matrix.Transposed(), u);
    }
  }

  // t^T (A + A^T) x.
  void AppendBothWays(const Strided& x, const Strided& A, const Strided& t) {
    const Strided moved = call_.New(x, x.last());
    BothWays(call_.From(x), Seen(A, kInBoth), call_.From(moved), products_);
    AppendDots(moved, t);
  }

  // to = x A^T + x A.
  static void BothWays(const Matrices& x, const Matrices& A, const Matrices& to,
                       Products& products) {
    products.Append(x, A.Transposed(), to);
    products.Append(x, A, to, true);
  }

  void Run() {
    products_.Run();
    dots_.Run();
  }

 private:
  void Append(const Strided& vectors, const Matrices& matrix, const Strided& others) {
    const Strided moved = call_.New(vectors, static_cast<npy_intp>(matrix.cols));
    products_.Append(call_.From(vectors), matrix, call_.From(moved));
    AppendDots(moved, others);
  }

  void AppendDots(const Strided& left, const Strided& right) {
    dots_.Append(Seen(left, kInColumns), Seen(right, kInRows), Seen(call_.result(), kInNone), add_);
    add_ = true;
  }

  Call& call_;
  Batch none_;
  Products products_, dots_;
  bool add_ = false;
};

// --- quadratic forms ---

void QuadraticValue(Call& call) {
  Forms forms(call);
  forms.Append(call.operand(0), call.operand(1), call.operand(0));
  forms.Run();
}

void QuadraticVjp(Call& call) {
  const size_t stack = call.batch().stack;
  const Strided vectors = call.operand(0);
  const Matrices x = call.From(vectors), A = Seen(call.operand(1), kInBoth);
  const Matrices g = call.From(call.cotangent(), false, kInNone, stack);
  if (call.out(0)) {
    const Matrices gx = call.To(call.out(0), false, kInColumns, stack);
    const Matrices both = stack == 0 ? gx : call.From(call.New(vectors, vectors.last()));
    const Batch none;
    Products moved(call.dtype(), none);
    Forms::BothWays(x, A, both, moved);
    moved.Run();
    Scale(call, g, both, gx);
  }
  if (call.out(1)) {
    const Strided weighted = call.New(vectors, vectors.last(), true);
    const Matrices gx = call.From(weighted, false, kInColumns, stack);
    Scale(call, g, x, gx);
    const Batch batch = call.FlatStack();
    Products products(call.dtype(), batch);
    products.Append(gx.Transposed(), x, call.To(call.out(1), false, kInColumns, stack));
    products.Run();
  }
}

void QuadraticJvp(Call& call) {
  const Strided x = call.operand(0);
  Forms forms(call);
  if (call.tangent(1)) forms.Append(x, call.tangent(1), x);
  if (call.tangent(0)) forms.AppendBothWays(x, call.operand(1), call.tangent(0));
  forms.Run();
}

void QuadraticValueAndGrad(Call& call) {
  const Strided x = call.operand(0);
  OnePass(call, x, call.operand(1), x, call.out(0), call.out(0));
  Outer(call, x, x, call.out(1));
}

// --- bilinear forms ---

void BilinearValue(Call& call) {
  Forms forms(call);
  forms.Append(call.operand(0), call.operand(1), call.operand(2));
  forms.Run();
}

void BilinearVjp(Call& call) {
  const Strided u = call.operand(0);
  const Strided v = call.operand(2);
  const Matrices X = Seen(call.operand(1), kInBoth);
  const size_t stack = call.batch().stack;
  // The cotangents on the vectors of one side, summed to the batch of those of the other.
  Products weights(call.dtype(), call.batch());
  const auto weighted = [&](const Strided& vectors, const Strided& others) {
    const Strided sums = call.New(others, vectors.last(), true);
    if (!call.Repeats(vectors) && !call.Repeats(others)) {
      const Matrices flat = call.From(sums, false, kInColumns, stack);
      Scale(call, call.From(call.cotangent(), false, kInNone, stack), call.From(vectors), flat);
      return flat;
    }
    weights.Append(Seen(call.cotangent(), kInNone, stack), Seen(vectors, kInColumns),
                   Seen(sums, kInColumns, stack));
    return call.From(sums, false, kInColumns, stack);
  };
  const auto to = [&](size_t i) { return call.To(call.out(i), false, kInColumns, stack); };
  const Batch batch = call.FlatStack();
  Products products(call.dtype(), batch);
  if (call.out(0) || call.out(1)) {
    const Matrices gv = weighted(v, u);
    if (call.out(0)) products.Append(gv, X.Transposed(), to(0));
    if (call.out(1)) products.Append(call.From(u).Transposed(), gv, to(1));
  }
  if (call.out(2)) products.Append(weighted(u, v), X, to(2));
  weights.Run();
  products.Run();
}

void BilinearJvp(Call& call) {
  Forms forms(call);
  for (size_t i = 0; i < 3; ++i) {
    if (!call.tangent(i)) continue;
    std::array<Strided, 3> at{call.operand(0), call.operand(1), call.operand(2)};
    at[i] = call.tangent(i);
    forms.Append(at[0], at[1], at[2]);
  }
  forms.Run();
}

void BilinearValueAndGrad(Call& call) {
  const Strided u = call.operand(0);
  const Strided v = call.operand(2);
  OnePass(call, u, call.operand(1), v, call.out(0), call.out(2));
  Outer(call, u, v, call.out(1));
}

// --- the table -----------------------------------------------------------------------------------

constexpr ProductRow kRows[] = {
    {"matmul", "(..., m?, k), (..., k, n?) -> (..., m?, n?)", kMostOperands,  //
     MatmulValue, MatmulVjp, MatmulJvp, nullptr},
    {"linear", "(..., k), (k, n), (n) -> (..., n)", 2,  //
     LinearValueOf, LinearVjpOf, LinearJvpOf, nullptr},
    {"quadratic_form", "(..., n), (n, n) -> (...)", kMostOperands,  //
     QuadraticValue, QuadraticVjp, QuadraticJvp, QuadraticValueAndGrad},
    {"bilinear_form", "(..., m), (m, n), (..., n) -> (...)", kMostOperands,  //
     BilinearValue, BilinearVjp, BilinearJvp, BilinearValueAndGrad},
};

// A method of a row; nothing, with a KeyError set, where there is none.
std::optional<std::pair<const ProductRow*, Way>> Find(std::string_view product,
                                                      std::string_view method) {
  const auto* const row = std::find_if(std::begin(kRows), std::end(kRows),
                                       [&](const ProductRow& x) { return x.name == product; });
  const auto* const way = std::find(std::begin(kWays), std::end(kWays), method);
  if (row != std::end(kRows) && way != std::end(kWays)) {
    const auto found = static_cast<Way>(way - std::begin(kWays));
    if (found != Way::kValueAndGrad || row->value_and_grad != nullptr) {
      return std::pair(row, found);
    }
  }
  PyErr_Format(PyExc_KeyError, "no native method '%s' of a product '%s'",
               std::string(method).c_str(), std::string(product).c_str());
  return std::nullopt;
}

// --- calls as a user makes them ------------------------------------------------------------------

struct ProductEntry : MethodEntry {
  ProductEntry(const ProductRow* row, Way way) : row(row), rule(row->signature), way(way) {}

  const ProductRow* row;
  ShapeRule rule;
  Way way;
  std::optional<size_t> out_at, wrt_at, activation_at;
  Ref wrt;  // where none is given; null for all
};

PyObject* ProductCall(const MethodEntry& own, const Arguments& args) {
  const auto& entry = static_cast<const ProductEntry&>(own);
  PyObject* asked = entry.wrt_at ? args[*entry.wrt_at] : nullptr;
  if (asked == nullptr) asked = entry.wrt.get();
  const std::optional<Wrt> wrt = entry.signature.ReadWrt(asked, entry.rule.operands);
  if (!wrt) return nullptr;
  Call call(*entry.row, entry.rule, entry.way, false);
  if (!call.Take(args.data(), Given(args, entry.activation_at), *wrt)) return nullptr;
  PyObject* const out = Given(args, entry.out_at);
  std::array<PyObject*, kMostOperands + 1> outs{out};
  if (out != nullptr && entry.way == Way::kVjp && !wrt->single) {
    if (!PyTuple_CheckExact(out) || static_cast<size_t>(PyTuple_GET_SIZE(out)) != wrt->count) {
      return nullptr;
    }
    std::copy_n(&PyTuple_GET_ITEM(out, 0), wrt->count, outs.begin());
  }
  if (!call.Place(outs.data())) return nullptr;
  try {
    call.Compute();
  } catch (const Raised&) {
    return nullptr;
  }
  switch (entry.way) {
    case Way::kVjp:
      return call.Cotangents();
    case Way::kValueAndGrad: {
      const Ref value(call.Result()), gradients(call.Cotangents());
      return value && gradients ? PyTuple_Pack(2, value.get(), gradients.get()) : nullptr;
    }
    default:
      return call.Result();
  }
}

// --- the engine ----------------------------------------------------------------------------------

// product_results(product, method, arrays, activation, wrt, outs)
PyObject* ProductResults(PyObject*, PyObject* const* args, Py_ssize_t nargs) {
  const auto refuse = [](const char* argument) -> PyObject* {
    if (PyErr_Occurred() != nullptr) return nullptr;
    return PyErr_Format(PyExc_TypeError, "product_results: %s is not what the engine takes",
                        argument);
  };
  if (nargs != 6) return refuse("the number of arguments");
  const char* const product = PyUnicode_AsUTF8(args[0]);
  const char* const method = product == nullptr ? nullptr : PyUnicode_AsUTF8(args[1]);
  if (method == nullptr) return nullptr;
  const auto found = Find(product, method);
  if (!found) return nullptr;
  const auto& [row, way] = *found;
  const ShapeRule rule(row->signature);
  const auto holds = [](PyObject* tuple, size_t count) {
    return PyTuple_CheckExact(tuple) && static_cast<size_t>(PyTuple_GET_SIZE(tuple)) == count;
  };
  if (!holds(args[2], Call::Arrays(rule.operands, way))) return refuse("arrays");
  if (!PyTuple_CheckExact(args[4])) return refuse("wrt");
  const std::optional<Wrt> wrt = Signature().ReadWrt(args[4], rule.operands);
  if (!wrt) return refuse("wrt");
  const bool has_value = way != Way::kVjp, has_cotangents = way != Way::kValue && way != Way::kJvp;
  if (!holds(args[5], (has_value ? 1 : 0) + (has_cotangents ? wrt->count : 0))) {
    return refuse("outs");
  }
  Call call(*row, rule, way, true);
  if (!call.Take(&PyTuple_GET_ITEM(args[2], 0), args[3] == Py_None ? nullptr : args[3], *wrt)) {
    return refuse("arrays");
  }
  if (!call.Place(&PyTuple_GET_ITEM(args[5], 0))) return refuse("outs");
  try {
    call.Compute();
  } catch (const Raised&) {
    return nullptr;
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
  if (!has_value) return call.Cotangents();
  const Ref value(call.Result());
  if (!value) return nullptr;
  if (!has_cotangents) return PyTuple_Pack(1, value.get());
  const Ref first(PyTuple_Pack(1, value.get())), rest(call.Cotangents());
  return first && rest ? PySequence_Concat(first.get(), rest.get()) : nullptr;
}

PyMethodDef kEngine[] = {
    {"product_results", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(ProductResults)),
     METH_FASTCALL, "product_results(product, method, arrays, activation, wrt, outs, /)\n--\n\n"},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

PyObject* NewProductMethod(const char* product, const char* method, PyObject* fallback) {
  const auto found = Find(product, method);
  if (!found) return nullptr;
  auto entry = std::make_unique<ProductEntry>(found->first, found->second);
  const size_t arrays = Call::Arrays(entry->rule.operands, entry->way);
  const bool may_lack = entry->way == Way::kValue && entry->row->may_lack < kMostOperands;
  if (!entry->signature.Read(fallback, arrays - (may_lack ? 1 : 0))) return nullptr;
  entry->out_at = entry->signature.Find("out");
  entry->wrt_at = entry->signature.Find("wrt");
  entry->activation_at = entry->signature.Find("activation");
  if (entry->wrt_at) {
    const Ref defaults(PyObject_GetAttrString(fallback, "__kwdefaults__"));
    if (!defaults) {
      PyErr_Clear();
    } else if (PyDict_Check(defaults.get())) {
      PyObject* const wrt = PyDict_GetItemString(defaults.get(), "wrt");
      const bool all = wrt == nullptr || (PyUnicode_CheckExact(wrt) &&
                                          PyUnicode_CompareWithASCIIString(wrt, "all") == 0);
      if (!all) entry->wrt = Ref(Py_NewRef(wrt));
    }
  }
  return NewMethod(ProductCall, std::move(entry), fallback);
}

PyObject* ProductOps() {
  Ref ops(PyDict_New());
  for (const ProductRow& row : kRows) {
    const Ref signature(ops ? PyUnicode_FromString(row.signature) : nullptr);
    if (!signature || PyDict_SetItemString(ops.get(), row.name, signature.get()) != 0) {
      return nullptr;
    }
  }
  return ops.release();
}

bool RegisterProductEngine(PyObject* module) { return PyModule_AddFunctions(module, kEngine) == 0; }

}  // namespace pullback
