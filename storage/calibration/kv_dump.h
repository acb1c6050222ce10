// kv_dump.h: keys and values of texts in a safetensors file (docs/codecs.md, section 4), so that any engine can feed
// the calibration and one capture can serve many. Windows are written and read one at a time: a dump may be larger than
// memory. Reading believes nothing: a file that is not what it says earns kCorrupt and a reason.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "core/base/file_out.h"
#include "firn/model.h"
#include "firn/status.h"

namespace firn {

struct KvWindow {
  std::uint64_t first_position = 0;
  std::uint32_t tokens = 0;
};

class KvDumpWriter {
 public:
  // The model has one group of full attention. All windows are known beforehand, as a file's header comes first.
  // The file is there when close() was ok, and its owner's alone (0600).
  static Result<std::unique_ptr<KvDumpWriter>> create(const std::string& path, const ModelSpec& model,
                                                      std::vector<KvWindow> windows);
  // The next window, [layer][token][kv_heads * dim], keys as the model rotated them; rounded to the cache's type.
  Status add(const std::vector<float>& keys, const std::vector<float>& values);
  Status close();  // kIo: something could not be written; kInvalidArgument: windows are missing

 private:
  explicit KvDumpWriter(FileOut file) : file_(std::move(file)) {}
  FileOut file_;
  GroupSpec group_;
  std::vector<KvWindow> windows_;
  std::size_t next_ = 0;
};

class KvDumpReader {
 public:
  static Result<std::unique_ptr<KvDumpReader>> open(const std::string& path);
  ~KvDumpReader();
  const ModelSpec& model() const { return model_; }
  const std::vector<KvWindow>& windows() const { return windows_; }
  Status read(std::size_t window, std::vector<float>& keys, std::vector<float>& values);

 private:
  KvDumpReader() = default;
  Status read_header();
  Status read_tensor(std::uint64_t offset, std::size_t count, std::vector<float>& values);
  std::string path_;
  std::FILE* file_ = nullptr;
  ModelSpec model_;
  std::vector<KvWindow> windows_;
  std::vector<std::uint64_t> keys_at_, values_at_;  // from the start of the file
};

}  // namespace firn
