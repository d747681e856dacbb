// SPDX-License-Identifier: MIT
/*!
 * \file shell_log.h
 * \brief Lines for TensorRT's logger, and the wall that no exception passes.
 */
#pragma once

#include <exception>
#include <string>

#include "shell_version.h"

namespace s6::plugin {

using Severity = nvinfer1::ILogger::Severity;

#if S6_HAS_PLUGIN_LIBRARIES
//! Finds TensorRT's logger from now on; before that, errors and warnings go to stderr.
void useLoggerFinder(nvinfer1::ILoggerFinder* finder) noexcept;
#endif

//! A line that begins with "s6 plugin".
void log(Severity severity, const std::string& line) noexcept;

//! The line for an exception: which node, which callback, what was found and what is allowed.
void logFailure(const char* node, const char* callback, const char* text) noexcept;

/*!
 * \brief Runs a callback of TensorRT's, which must not throw.
 * \param node Its name in the graph; may be empty or null.
 * \return What the body returns, or `otherwise` after a line in the log.
 */
template <typename Result, typename Body>
Result guarded(const char* node, const char* callback, Result otherwise, Body body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    logFailure(node, callback, error.what());
  } catch (...) {
    logFailure(node, callback, "an exception of an unknown kind");
  }
  return otherwise;
}

}  // namespace s6::plugin
