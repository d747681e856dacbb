# SPDX-License-Identifier: MIT
"""Mamba language models on Jetson Orin Nano: convert, build, generate, score, bench, report."""

__version__ = "0.1.0"
