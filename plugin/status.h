/* SPDX-License-Identifier: Apache-2.0 */
/* What internal functions return. At the NCCL boundary every failure means "let NCCL do it". */
#ifndef LAMPREY_PLUGIN_STATUS_H
#define LAMPREY_PLUGIN_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

enum lamprey_status {
    LAMPREY_OK = 0,
    LAMPREY_ERROR_INVALID,     /* an argument or a record makes no sense */
    LAMPREY_ERROR_UNSUPPORTED, /* this machine, driver or image can't do it */
    LAMPREY_ERROR_MEMORY,      /* out of host or device memory, descriptors or address space */
    LAMPREY_ERROR_SYSTEM,      /* a system call failed */
    LAMPREY_ERROR_DRIVER,      /* a CUDA driver call failed */
    LAMPREY_ERROR_PERMISSION,  /* the CUDA driver doesn't permit it to this user */
    LAMPREY_ERROR_NCCL,        /* a call into NCCL failed */
    LAMPREY_ERROR_ASYNC,       /* the communicator has an error, which NCCL's next call tells */
    LAMPREY_ERROR_TIMEOUT,     /* a peer did not show up */
    LAMPREY_ERROR_ABORTED,     /* the communicator was aborted meanwhile */
};

/* A short English name, never NULL. */
const char *lamprey_status_name(enum lamprey_status status);

#ifdef __cplusplus
}
#endif

#endif
