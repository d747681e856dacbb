// SPDX-License-Identifier: MIT
/*!
 * \file exercise.cpp
 * \brief Calls every operator of libs6_plugin.so as TensorRT would, without a TensorRT.
 */
#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <set>
#include <string>

#include "case.h"
#include "failure.h"
#include "memory.h"
#include "phases.h"
#include "refusals.h"

namespace s6::exercise {
namespace {

constexpr const char* kUsage =
    "Usage: exercise_plugin [LIBRARY]\n"
    "\n"
    "Calls the TensorRT plugins of libs6_plugin.so as TensorRT would: attributes, types, shapes,\n"
    "formats, profile, workspace, bytes of an engine and back, then on a GPU runs them, enqueued\n"
    "and from a CUDA graph, and compares each output byte for byte with the C API of libs6.so.\n"
    "Also hands them what they must refuse. Without a GPU nothing is enqueued. No TensorRT is\n"
    "needed; the library must be built against the same version of its headers.\n"
    "\n"
    "LIBRARY  libs6_plugin.so; otherwise the one beside this program\n"
    "\n"
    "Exit status: 0, all is as it should be; 1, something is not; 2, it could not begin.\n";

std::string besideThisProgram(const char* name) {
  Dl_info info = {};
  static const int here = 0;
  require(dladdr(&here, &info) != 0, "where this program lies is unknown");
  const std::string path = info.dli_fname;
  const std::size_t slash = path.rfind('/');
  return (slash == std::string::npos ? "./" : path.substr(0, slash + 1)) + name;
}

//! Counts failures and prints a line for each thing that is tried.
class Report {
 public:
  //! \param body Returns the end of the line, or throws.
  template <typename Body>
  void line(const std::string& op, const std::string& title, Body body) {
    std::string verdict;
    try {
      verdict = body();
    } catch (const std::exception& error) {
      ++failures;
      verdict = std::string("FAILED: ") + error.what();
    }
    std::printf("%-14s %-42s %s\n", op.c_str(), title.c_str(), verdict.c_str());
    std::fflush(stdout);
  }
  int failures = 0;
};

int exercise(const std::string& path) {
  const Library library(path);
  const std::string gpu = gpuName();
  for (const std::string& remark : library.log().remarks) std::printf("%s\n", remark.c_str());
  std::printf("%s, headers of TensorRT %d.%d.%d, %s\n\n", kInterface, NV_TENSORRT_MAJOR,
              NV_TENSORRT_MINOR, NV_TENSORRT_PATCH,
              gpu.empty() ? "no GPU: nothing is enqueued" : gpu.c_str());
  Report report;
  std::set<std::string> exercised;
  int count = 0, refused = 0;
  for (const auto make : {sequenceCases, matrixCases, stepCases}) {
    for (const Case& one : make()) {
      exercised.insert(one.op);
      ++count;
      report.line(one.op, one.title, [&]() -> std::string {
        const Built built = build(library, one);
        const auto node = load(library, one, built);
        const std::string types = "accepted types: " + std::to_string(built.combinations) + "; ";
        if (gpu.empty()) return types + "not enqueued";
        return types + "equal, " + std::to_string(run(*node, one, built.workspace_bytes)) +
               " bytes";
      });
    }
  }
  std::printf("\n");
  for (const Refusal& one : refusals(library)) {
    ++refused;
    report.line(one.op, one.title, [&] { return "refused: " + tryRefusal(library, one); });
  }
  for (Creator* creator : library.creators()) {
    if (exercised.count(creator->getPluginName()) != 0) continue;
    report.line(creator->getPluginName(), "",
                []() -> std::string { throw Failure("an operator without a case"); });
  }
  std::printf("\n%d operators, %d cases%s, %d refusals: %d failed\n",
              static_cast<int>(exercised.size()), count,
              gpu.empty() ? " (not enqueued: no GPU)" : "", refused, report.failures);
  return report.failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace s6::exercise

int main(int count, char** arguments) {
  if (count > 1 && (std::strcmp(arguments[1], "--help") == 0 || arguments[1][0] == '-')) {
    const bool helps = std::strcmp(arguments[1], "--help") == 0;
    std::fputs(s6::exercise::kUsage, helps ? stdout : stderr);
    return helps ? 0 : 2;
  }
  try {
    return s6::exercise::exercise(count > 1 ? arguments[1]
                                            : s6::exercise::besideThisProgram("libs6_plugin.so"));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "exercise_plugin: %s\n", error.what());
    return 2;
  }
}
