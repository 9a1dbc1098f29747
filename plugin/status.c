/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/status.h"

const char *lamprey_status_name(enum lamprey_status status)
{
    switch (status) {
    case LAMPREY_OK:
        return "ok";
    case LAMPREY_ERROR_INVALID:
        return "invalid";
    case LAMPREY_ERROR_UNSUPPORTED:
        return "unsupported";
    case LAMPREY_ERROR_MEMORY:
        return "out of memory";
    case LAMPREY_ERROR_SYSTEM:
        return "system call failed";
    case LAMPREY_ERROR_DRIVER:
        return "CUDA driver call failed";
    case LAMPREY_ERROR_PERMISSION:
        return "not permitted";
    case LAMPREY_ERROR_NCCL:
        return "NCCL call failed";
    case LAMPREY_ERROR_ASYNC:
        return "the communicator has an error";
    case LAMPREY_ERROR_TIMEOUT:
        return "timed out";
    case LAMPREY_ERROR_ABORTED:
        return "aborted";
    }
    return "unknown";
}
