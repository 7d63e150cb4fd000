// Stands in for ONNX Runtime's header of this name, which its Python package does not hold.
//
// Only what the `load.cpp` of a bundle uses, with the names and parameters of the real header, over
// the C interface of libonnxruntime.so: so a name that is not here does not compile, and what
// compiles runs the real library. OrtApi is a table of functions that only ever grows at its end:
// the numbers are places in it (onnxruntime_c_api.h, release 1.21).
// Set ONNXRUNTIME_INCLUDE to a folder with the real headers, and the tests compile against those.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2 };
enum GraphOptimizationLevel {
  ORT_DISABLE_ALL = 0,
  ORT_ENABLE_BASIC = 1,
  ORT_ENABLE_EXTENDED = 2,
  ORT_ENABLE_ALL = 99
};
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };

struct OrtApiBase {
  const void* const* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};
extern "C" const OrtApiBase* OrtGetApiBase();

namespace Ort {

template <typename Result, typename... Arguments>
Result at(int place, Arguments... arguments) {
  static const void* const* api = OrtGetApiBase()->GetApi(21);
  return reinterpret_cast<Result (*)(Arguments...)>(const_cast<void*>(api[place]))(arguments...);
}

template <typename... Arguments>
void call(int place, Arguments... arguments) {
  void* status = at<void*>(place, arguments...);
  if (status) throw std::runtime_error(at<const char*>(2, static_cast<const void*>(status)));
}

// A handle of the library that `release`, a place in the table, gives back.
template <int release>
struct Handle {
  void* p = nullptr;
  Handle() = default;
  Handle(Handle&& other) noexcept : p(std::exchange(other.p, nullptr)) {}
  Handle(const Handle&) = delete;
  ~Handle() {
    if (p) at<void>(release, p);
  }
};

struct Float16_t {
  uint16_t val = 0;
};
struct BFloat16_t {
  uint16_t val = 0;
};

template <typename T>
constexpr int element_type = -1;
template <>
inline constexpr int element_type<float> = 1;
template <>
inline constexpr int element_type<uint8_t> = 2;
template <>
inline constexpr int element_type<int8_t> = 3;
template <>
inline constexpr int element_type<uint16_t> = 4;
template <>
inline constexpr int element_type<int16_t> = 5;
template <>
inline constexpr int element_type<int32_t> = 6;
template <>
inline constexpr int element_type<int64_t> = 7;
template <>
inline constexpr int element_type<bool> = 9;
template <>
inline constexpr int element_type<Float16_t> = 10;
template <>
inline constexpr int element_type<double> = 11;
template <>
inline constexpr int element_type<uint32_t> = 12;
template <>
inline constexpr int element_type<uint64_t> = 13;
template <>
inline constexpr int element_type<BFloat16_t> = 16;

struct Env : Handle<92> {
  Env(OrtLoggingLevel level, const char* id) { call(3, static_cast<int>(level), id, &p); }
};

struct SessionOptions : Handle<100> {
  SessionOptions() { call(10, &p); }
  SessionOptions& SetIntraOpNumThreads(int count) {
    call(24, p, count);
    return *this;
  }
  SessionOptions& SetGraphOptimizationLevel(GraphOptimizationLevel level) {
    call(23, p, static_cast<int>(level));
    return *this;
  }
  SessionOptions& RegisterCustomOpsLibrary(const char* path) {
    call(228, p, path);
    return *this;
  }
};

struct MemoryInfo : Handle<94> {
  static MemoryInfo CreateCpu(OrtAllocatorType allocator, OrtMemType type) {
    MemoryInfo made;
    call(69, static_cast<int>(allocator), static_cast<int>(type), &made.p);
    return made;
  }
};

struct TensorTypeAndShapeInfo : Handle<99> {
  std::vector<int64_t> GetShape() const {
    size_t rank = 0;
    call(61, static_cast<const void*>(p), &rank);
    std::vector<int64_t> shape(rank);
    call(62, static_cast<const void*>(p), shape.data(), rank);
    return shape;
  }
};

struct Value : Handle<96> {
  template <typename T>
  static Value CreateTensor(const MemoryInfo& memory, T* data, size_t count, const int64_t* shape,
                            size_t rank) {
    static_assert(element_type<T> > 0, "a type that tensors do not have");
    Value made;
    call(49, static_cast<const void*>(memory.p), static_cast<void*>(data), count * sizeof(T),
         shape, rank, element_type<T>, &made.p);
    return made;
  }
  TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const {
    TensorTypeAndShapeInfo found;
    call(65, static_cast<const void*>(p), &found.p);
    return found;
  }
};

struct RunOptions {
  explicit RunOptions(std::nullptr_t) {}
};

struct Session : Handle<95> {
  Session(const Env& env, const char* path, const SessionOptions& options) {
    call(7, static_cast<const void*>(env.p), path, static_cast<const void*>(options.p), &p);
  }
  std::vector<Value> Run(const RunOptions&, const char* const* input_names, const Value* inputs,
                         size_t input_count, const char* const* output_names,
                         size_t output_count) {
    std::vector<const void*> given;
    for (size_t i = 0; i < input_count; ++i) given.push_back(inputs[i].p);
    std::vector<void*> made(output_count, nullptr);
    call(9, p, static_cast<const void*>(nullptr), input_names,
         static_cast<const void* const*>(given.data()), input_count, output_names, output_count,
         made.data());
    std::vector<Value> outputs(output_count);
    for (size_t i = 0; i < output_count; ++i) outputs[i].p = made[i];
    return outputs;
  }
};

}  // namespace Ort
