// Outputs under what happens to them: full disks, limits, kills, links, read-only places.
#include "core/base/file_out.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>

namespace firn {
namespace {

namespace fs = std::filesystem;

std::string read_all(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

unsigned mode_of(const std::string& path) {
  struct stat found {};
  return lstat(path.c_str(), &found) == 0 ? found.st_mode & 07777u : ~0u;
}

class FileOutTest : public testing::Test {
 protected:
  FileOutTest() : umask_(umask(022)) {
    std::string name = (fs::temp_directory_path() / "firn_file_out_XXXXXX").string();
    folder_ = mkdtemp(name.data());
  }
  ~FileOutTest() override {
    umask(umask_);
    fs::remove_all(folder_);
  }
  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  std::size_t files() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }
  std::string folder_;

 private:
  mode_t umask_;
};

// What a function does to this process stays in a child. Its result: what the function returns, or 128 + the signal.
int in_child(const std::function<int()>& function) {
  const pid_t child = fork();
  if (child == 0) _exit(function());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST_F(FileOutTest, WhatIsWrittenIsThereOnlyWhenItIsFinished) {
  const std::string file = path("out");
  ASSERT_TRUE(write_file(file, "old", Readers::kAnyone).ok());
  const std::string piece(100'000, 'x');
  {
    Result<FileOut> out = FileOut::create(file, Readers::kAnyone);
    ASSERT_TRUE(out.ok()) << out.status().message();
    EXPECT_TRUE(out->write("new").ok());
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(out->write(piece).ok());
    EXPECT_EQ(read_all(file), "old");
    FileOut moved = std::move(*out);
    EXPECT_TRUE(moved.finish().ok());
    EXPECT_EQ(read_all(file), "new" + piece + piece + piece);
    EXPECT_FALSE(moved.write("more").ok());
    EXPECT_FALSE(moved.finish().ok());
  }
  EXPECT_EQ(files(), 1u);
}

TEST_F(FileOutTest, WithoutFinishTheOldFileStaysAndNothingElse) {
  const std::string file = path("out");
  ASSERT_TRUE(write_file(file, "old", Readers::kAnyone).ok());
  {
    Result<FileOut> out = FileOut::create(file, Readers::kAnyone);
    ASSERT_TRUE(out.ok());
    EXPECT_TRUE(out->write(std::string(1 << 20, 'x')).ok());
    EXPECT_EQ(files(), 2u);
  }
  EXPECT_EQ(read_all(file), "old");
  EXPECT_EQ(files(), 1u);
}

TEST_F(FileOutTest, ModesKeepWhatIsPrivatePrivate) {
  ASSERT_TRUE(write_file(path("tokens"), "1", Readers::kOwner).ok());
  EXPECT_EQ(mode_of(path("tokens")), 0600u);
  ASSERT_TRUE(write_file(path("report"), "1", Readers::kAnyone).ok());
  EXPECT_EQ(mode_of(path("report")), 0644u);
  umask(027);
  ASSERT_TRUE(write_file(path("umask"), "1", Readers::kAnyone).ok());
  EXPECT_EQ(mode_of(path("umask")), 0640u);
  // One that is there keeps its mode, unless that would show keys, values, prompts or tokens to others.
  ASSERT_EQ(chmod(path("report").c_str(), 0600), 0);
  ASSERT_TRUE(write_file(path("report"), "2", Readers::kAnyone).ok());
  EXPECT_EQ(mode_of(path("report")), 0600u);
  ASSERT_EQ(chmod(path("tokens").c_str(), 0666), 0);
  ASSERT_TRUE(write_file(path("tokens"), "2", Readers::kOwner).ok());
  EXPECT_EQ(mode_of(path("tokens")), 0600u);
  // Also while it is being written.
  Result<FileOut> out = FileOut::create(path("tokens"), Readers::kOwner);
  ASSERT_TRUE(out.ok());
  for (const auto& entry : fs::directory_iterator(folder_)) {
    if (entry.path().string().find("tokens.new-") == std::string::npos) continue;
    EXPECT_EQ(mode_of(entry.path().string()), 0600u);
  }
}

TEST_F(FileOutTest, AFullDiskLeavesTheOldFile) {
  // A file system of 64 KiB in a namespace of the child's own; where that is not allowed, a limit on file sizes.
  const std::string file = path("out");
  const auto full = [&](std::size_t bytes, const std::function<bool()>& narrow) {
    return in_child([&] {
      if (!narrow()) return 77;
      if (!write_file(file, "old", Readers::kAnyone).ok()) return 1;
      const Status status = write_file(file, std::string(bytes, 'x'), Readers::kAnyone);
      if (status.ok() || status.code() != Code::kIo) return 2;
      if (status.message().find(file) == std::string::npos || status.message().find('(') == std::string::npos) return 3;
      if (read_all(file) != "old" || files() != 1) return 4;
      return write_file(file, "new", Readers::kAnyone).ok() && read_all(file) == "new" ? 0 : 5;
    });
  };
  const int disk = full(1 << 20, [&] {
    if (unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return false;
    if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return false;
    return mount("tmpfs", folder_.c_str(), "tmpfs", 0, "size=64k") == 0;
  });
  EXPECT_TRUE(disk == 0 || disk == 77) << disk;
  if (disk == 77) std::puts("no file system of our own here");
  EXPECT_EQ(full(1 << 20,
                 [] {
                   const rlimit limit{100'000, 100'000};
                   std::signal(SIGXFSZ, SIG_IGN);
                   return setrlimit(RLIMIT_FSIZE, &limit) == 0;
                 }),
            0);
}

TEST_F(FileOutTest, AKillInTheMiddleLeavesTheOldFile) {
  const std::string file = path("out");
  ASSERT_TRUE(write_file(file, "old", Readers::kOwner).ok());
  int pipes[2];
  ASSERT_EQ(pipe(pipes), 0);
  const pid_t child = fork();
  if (child == 0) {
    Result<FileOut> out = FileOut::create(file, Readers::kOwner);
    if (out.ok() && out->write(std::string(1 << 20, 'x')).ok() && write(pipes[1], "x", 1) == 1) pause();
    _exit(1);
  }
  char ready = 0;
  ASSERT_EQ(read(pipes[0], &ready, 1), 1);
  kill(child, SIGKILL);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status));
  close(pipes[0]);
  close(pipes[1]);
  EXPECT_EQ(read_all(file), "old");
  // What it left is nobody else's to read, and in nobody's way.
  for (const auto& entry : fs::directory_iterator(folder_)) EXPECT_EQ(mode_of(entry.path().string()), 0600u);
  ASSERT_TRUE(write_file(file, "new", Readers::kOwner).ok());
  EXPECT_EQ(read_all(file), "new");
}

TEST_F(FileOutTest, ALinkStaysALinkAndItsFileIsReplaced) {
  fs::create_directory(path("elsewhere"));
  ASSERT_TRUE(write_file(path("elsewhere/real"), "old", Readers::kAnyone).ok());
  fs::create_symlink("elsewhere/real", path("link"));
  fs::create_symlink("elsewhere/not there yet", path("dangling"));
  ASSERT_TRUE(write_file(path("link"), "new", Readers::kAnyone).ok());
  EXPECT_TRUE(fs::is_symlink(path("link")));
  EXPECT_EQ(read_all(path("elsewhere/real")), "new");
  ASSERT_TRUE(write_file(path("dangling"), "made", Readers::kAnyone).ok());
  EXPECT_EQ(read_all(path("elsewhere/not there yet")), "made");
  fs::create_symlink("loop", path("loop"));
  EXPECT_EQ(write_file(path("loop"), "x", Readers::kAnyone).code(), Code::kInvalidArgument);
}

TEST_F(FileOutTest, WhatCannotBeReplacedIsWrittenStraight) {
  ASSERT_EQ(mkfifo(path("pipe").c_str(), 0600), 0);
  const int reader = open(path("pipe").c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  ASSERT_TRUE(write_file(path("pipe"), "through", Readers::kOwner).ok());
  char got[16] = {};
  EXPECT_EQ(read(reader, got, sizeof got), 7);
  EXPECT_STREQ(got, "through");
  close(reader);
  EXPECT_TRUE(write_file("/dev/null", "x", Readers::kAnyone).ok());
  const Status full = write_file("/dev/full", "x", Readers::kAnyone);
  EXPECT_EQ(full.code(), Code::kIo);
  EXPECT_NE(full.message().find("No space left on device"), std::string::npos) << full.message();
  // An open file by its number is added to: whoever redirected it there keeps it.
  const int open_file = open(path("redirected").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_EQ(write(open_file, "first ", 6), 6);
  ASSERT_TRUE(write_file("/dev/fd/" + std::to_string(open_file), "second", Readers::kAnyone).ok());
  EXPECT_EQ(read_all(path("redirected")), "first second");
  close(open_file);
}

TEST_F(FileOutTest, PlacesThatCannotBeWrittenAreNamedAtTheStart) {
  for (const std::string& name :
       {path("no/such/folder"), folder_, std::string(), folder_ + "/", std::string("/proc/x")}) {
    const Result<FileOut> out = FileOut::create(name, Readers::kAnyone);
    ASSERT_FALSE(out.ok()) << name;
    EXPECT_EQ(out.status().code(), Code::kInvalidArgument) << name;
    EXPECT_EQ(out.status().message().find(name), 0u) << out.status().message();
  }
  ASSERT_TRUE(write_file(path("kept"), "old", Readers::kAnyone).ok());
  ASSERT_EQ(chmod(path("kept").c_str(), 0444), 0);
  if (geteuid() == 0) {
    const int code = in_child([&] {  // root may write anything, so somebody else tries
      if (chmod(folder_.c_str(), 0777) != 0 || setgid(65534) != 0 || setuid(65534) != 0) return 77;
      return write_file(path("kept"), "new", Readers::kAnyone).code() == Code::kInvalidArgument ? 0 : 1;
    });
    EXPECT_TRUE(code == 0 || code == 77) << code;
  } else {
    EXPECT_EQ(write_file(path("kept"), "new", Readers::kAnyone).code(), Code::kInvalidArgument);
  }
  EXPECT_EQ(read_all(path("kept")), "old");
}

TEST_F(FileOutTest, ANameAsLongAsNamesMayBeIsWritten) {
  const std::string file = path(std::string(255, 'n'));
  ASSERT_TRUE(write_file(file, "x", Readers::kAnyone).ok());
  EXPECT_EQ(read_all(file), "x");
  fs::current_path(folder_);
  ASSERT_TRUE(write_file("relative", "x", Readers::kAnyone).ok());
  EXPECT_EQ(read_all(path("relative")), "x");
  fs::current_path("/");
  EXPECT_EQ(files(), 2u);
}

}  // namespace
}  // namespace firn
