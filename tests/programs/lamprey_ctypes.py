# SPDX-License-Identifier: Apache-2.0
"""lamprey.h for Python's ctypes: structs, constants and functions, without any package.

Copy it into a program, or call lampreyXxx of the object that load() gives. layout_test.py compares the structs with C's.
"""

import ctypes
import os
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_size_t, c_ubyte, c_uint32, c_uint64, c_void_p

FLOAT16, FLOAT32, BFLOAT16 = 6, 7, 9  # ncclDataType_t
QUANTIZE_NONE, QUANTIZE_FP8, QUANTIZE_FP8_PER_TOKEN, QUANTIZE_FP8_PER_GROUP, QUANTIZE_NVFP4 = range(5)
SCALES_128X4, SCALES_8X4, SCALES_LINEAR = range(3)
STRATEGY_AUTO, STRATEGY_ONE_SHOT, STRATEGY_TWO_SHOT = range(3)
RMS_NORM, GAMMA_CONSTANT, ACCUMULATE_IN_TYPE, SIGNAL = 1, 2, 4, 8  # flags
(FUSION_NONE, FUSION_RESIDUAL_RMS_NORM, FUSION_LAST_PROCESS_FOR_UB, FUSION_RESIDUAL_RMS_PRE_POST_NORM,
 FUSION_RESIDUAL_RMS_NORM_QUANT_FP8, FUSION_RESIDUAL_RMS_NORM_QUANT_NVFP4, FUSION_RESIDUAL_RMS_NORM_OUT_QUANT_FP8,
 FUSION_RESIDUAL_RMS_NORM_OUT_QUANT_NVFP4) = range(8)
FUSION_RMS_NORM = 16
WORKSPACE_ACROSS_HOSTS = 1

WorkspaceHandle = c_ubyte * 2048


class Sized(ctypes.Structure):
    """A struct whose first field is its own size."""

    def __init__(self, **fields):
        super().__init__(size=ctypes.sizeof(self), **fields)


class Stats(Sized):
    _fields_ = [("size", c_size_t)] + [(name, c_uint64) for name in (
        "served", "served_captured", "served_grouped", "fallback_communicator", "fallback_type", "fallback_operator",
        "fallback_size", "fallback_empty", "fallback_closed", "failed", "communicators_served",
        "communicators_refused")]


class WorkspaceArgs(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("nranks", c_uint32),
        ("rank", c_uint32),
        ("device", c_int32),
        ("flags", c_uint32),
        ("most_bytes", c_uint64),
        ("timeout_ms", c_uint32),
    ]


class FusedArgs(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("tokens", c_uint64),
        ("hidden", c_uint64),
        ("type", c_int),
        ("strategy", c_int),
        ("flags", c_uint32),
        ("in", c_void_p),
        ("all_reduce_out", c_void_p),
        ("residual_in", c_void_p),
        ("residual_out", c_void_p),
        ("gamma", c_void_p),
        ("gamma_type", c_int),
        ("epsilon", c_float),
        ("weight_bias", c_float),
        ("norm_out", c_void_p),
        ("quantize", c_int),
        ("layout", c_int),
        ("group", c_uint32),
        ("scale_value", c_float),
        ("scale", c_void_p),
        ("quant_out", c_void_p),
        ("scale_out", c_void_p),
        ("workspace", c_void_p),
    ]


class MoeReduceArgs(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("experts", c_uint32),
        ("scales", c_void_p),
        ("rows", c_void_p),
        ("added", c_void_p),
    ]


class MoeFinalizeArgs(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("top_k", c_uint32),
        ("indices", c_void_p),
        ("scales", c_void_p),
        ("scales_type", c_int),
        ("factor", c_float),
        ("rows", c_void_p),
        ("added", c_void_p),
    ]


class CustomArgs(Sized):
    _fields_ = [
        ("size", c_size_t),
        ("op", c_int),
        ("bias", c_void_p),
        ("pre_gamma", c_void_p),
    ]


STRUCTS = {
    "lampreyStats": Stats,
    "lampreyWorkspaceArgs": WorkspaceArgs,
    "lampreyFusedArgs": FusedArgs,
    "lampreyMoeReduceArgs": MoeReduceArgs,
    "lampreyMoeFinalizeArgs": MoeFinalizeArgs,
    "lampreyCustomArgs": CustomArgs,
}

_FUNCTIONS = {
    "lampreyGetVersion": [POINTER(c_int)],
    "lampreyGetStats": [c_void_p, POINTER(Stats)],
    "lampreyWorkspaceSize": [c_uint32, c_uint64, POINTER(c_uint64), POINTER(c_uint64)],
    "lampreyWorkspaceCreate": [c_void_p, POINTER(c_void_p)],
    "lampreyWorkspaceExport": [POINTER(WorkspaceArgs), POINTER(WorkspaceHandle), POINTER(c_void_p)],
    "lampreyWorkspaceCreateFromHandles": [c_void_p, POINTER(WorkspaceHandle), c_uint32],
    "lampreyWorkspaceDestroy": [c_void_p],
    "lampreyWorkspaceAbort": [c_void_p],
    "lampreyLamportInitialize": [c_void_p],
    "lampreyLamportInitializeAll": [POINTER(c_void_p), c_size_t],
    "lampreyAllReduceFused": [POINTER(FusedArgs), c_void_p, c_void_p],
    "lampreyMoeReduceAllReduceFused": [POINTER(FusedArgs), POINTER(MoeReduceArgs), c_void_p, c_void_p],
    "lampreyMoeFinalizeAllReduceFused": [POINTER(FusedArgs), POINTER(MoeFinalizeArgs), c_void_p, c_void_p],
    "lampreyCustomAllReduce": [POINTER(FusedArgs), POINTER(CustomArgs), c_void_p, c_void_p],
    "lampreyMnnvlAllReduce": [POINTER(FusedArgs), c_void_p],
    "lampreyMnnvlAllReduceRmsNorm": [POINTER(FusedArgs), c_void_p],
    "lampreyFp4SwizzledScaleSize": [c_uint64, c_uint64, POINTER(c_uint64)],
}


def load():
    """The liblamprey.so that NCCL has loaded; OSError if it hasn't, or if the loader's path lacks its folder."""
    library = ctypes.CDLL("liblamprey.so", mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    library.lampreyGetLastError.argtypes = []
    library.lampreyGetLastError.restype = c_char_p
    for name, arguments in _FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = c_int
    return library
