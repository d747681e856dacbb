# SPDX-License-Identifier: MIT
"""Every error a user can meet, one exit code each.

    PipelineError                        1   anything unexpected that still has an explanation
    ├── UsageError                       2   the command line does not make sense
    ├── CheckpointError                 10   a checkpoint cannot be used
    │   ├── CheckpointNotFoundError     11     nothing there, or a file it needs is missing
    │   ├── CheckpointCorruptError      12     truncated or not the format its name says
    │   ├── CheckpointDtypeError        13     a tensor has a type we do not read
    │   ├── UnsupportedModelError       14     a real checkpoint, but not a Mamba-1
    │   └── CheckpointContradictionError 15    config and tensors disagree
    ├── ArtifactError                   20   a bundle or an engine cannot be used
    │   ├── ArtifactNotFoundError       21     nothing there, or something that is not ours
    │   ├── ArtifactCorruptError        22     a file is missing, half-written or changed
    │   └── EngineMismatchError         23     built for another board or by other versions
    ├── PromptError                     30   text or token ids the model cannot take
    │   ├── EmptyPromptError            31
    │   └── TokenRangeError             32
    ├── StorageError                    40   a file or folder cannot be written
    │   └── DiskFullError               41
    ├── BoardError                      50   this machine is not what the command needs
    ├── TelemetryError                  51   power or temperature cannot be read
    ├── BenchmarkError                  60   a measurement could not be made
    ├── RecordError                     61   a benchmark record cannot be read
    ├── BackendError                    70   the backend failed while running
    ├── MissingDependencyError          71   an optional package is not installed
    └── PluginError                     72   the S6 kernel library refused or is not there

A message says what happened, where and what was found; `fix` says what to do about it.
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of all errors that end a command with a message instead of a traceback.

    Args:
        message: What happened, where, and what was found.
        fix: What the user can do about it; one sentence or one command.
    """

    exit_code = 1

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.fix = fix


class UsageError(PipelineError):
    """The command line does not make sense."""

    exit_code = 2


class CheckpointError(PipelineError):
    """A checkpoint cannot be used."""

    exit_code = 10


class CheckpointNotFoundError(CheckpointError):
    """There is no checkpoint at this place, or a file it needs is missing."""

    exit_code = 11


class CheckpointCorruptError(CheckpointError):
    """A checkpoint file is truncated or is not the format its name says."""

    exit_code = 12


class CheckpointDtypeError(CheckpointError):
    """A tensor has a type that weights are not read from."""

    exit_code = 13


class UnsupportedModelError(CheckpointError):
    """The checkpoint is whole but is not a model this project runs."""

    exit_code = 14


class CheckpointContradictionError(CheckpointError):
    """The config and the tensors disagree."""

    exit_code = 15


class ArtifactError(PipelineError):
    """A bundle or an engine cannot be used."""

    exit_code = 20


class ArtifactNotFoundError(ArtifactError):
    """There is no bundle or engine at this place."""

    exit_code = 21


class ArtifactCorruptError(ArtifactError):
    """A file of a bundle or engine is missing, half-written or changed."""

    exit_code = 22


class EngineMismatchError(ArtifactError):
    """The engine was built for another board or by other versions."""

    exit_code = 23


class PromptError(PipelineError):
    """The model cannot take this text or these token ids."""

    exit_code = 30


class EmptyPromptError(PromptError):
    """The prompt holds no token."""

    exit_code = 31


class TokenRangeError(PromptError):
    """A token id is outside the vocabulary."""

    exit_code = 32


class StorageError(PipelineError):
    """A file or folder cannot be written."""

    exit_code = 40


class DiskFullError(StorageError):
    """There is no room left on the device."""

    exit_code = 41


class BoardError(PipelineError):
    """This machine is not what the command needs."""

    exit_code = 50


class TelemetryError(PipelineError):
    """Power or temperature cannot be read."""

    exit_code = 51


class BenchmarkError(PipelineError):
    """A measurement could not be made."""

    exit_code = 60


class RecordError(PipelineError):
    """A benchmark record cannot be read."""

    exit_code = 61


class BackendError(PipelineError):
    """The backend failed while it was running."""

    exit_code = 70


class MissingDependencyError(PipelineError):
    """An optional package is not installed."""

    exit_code = 71


class PluginError(PipelineError):
    """The S6 kernel library refused a problem or is not there."""

    exit_code = 72
