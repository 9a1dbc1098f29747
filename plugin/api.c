/* SPDX-License-Identifier: Apache-2.0 */
#include "plugin/lamprey.h"

#include <stdarg.h>
#include <stdio.h>

#include "plugin/api.h"
#include "plugin/comm.h"
#include "plugin/stats.h"

static _Thread_local char last_error[256];

void lamprey_api_begin(void)
{
    last_error[0] = '\0';
}

ncclResult_t lamprey_api_fail(ncclResult_t result, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    return result;
}

static ncclResult_t invalid(const char *text)
{
    return lamprey_api_fail(ncclInvalidArgument, "%s", text);
}

ncclResult_t lampreyGetVersion(int *version)
{
    lamprey_api_begin();
    if (!version) {
        return invalid("lampreyGetVersion: version is NULL");
    }
    *version = LAMPREY_VERSION_CODE;
    return ncclSuccess;
}

const char *lampreyGetLastError(void)
{
    return last_error;
}

ncclResult_t lampreyGetStats(ncclComm_t comm, struct lampreyStats *stats)
{
    lamprey_api_begin();
    if (!stats) {
        return invalid("lampreyGetStats: stats is NULL");
    }
    if (stats->size < sizeof stats->size || stats->size > sizeof *stats) {
        return invalid(
            "lampreyGetStats: stats->size isn't that of any version of struct lampreyStats");
    }
    if (!comm) {
        lamprey_counters_read(&lamprey_process_counters, stats);
        return ncclSuccess;
    }
    struct lamprey_comm *known = lamprey_comm_find(comm);
    if (!known) {
        return invalid("lampreyGetStats: no all-reduce was seen on this communicator");
    }
    lamprey_counters_read(&known->counters, stats);
    lamprey_comm_release(known);
    return ncclSuccess;
}
