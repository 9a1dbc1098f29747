/* SPDX-License-Identifier: Apache-2.0 */
/* Groups: everything waits for the outermost end; one error and nothing of the group is launched.
 */
#include "tests/emulator/nccl/internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local int depth;
static _Thread_local ncclResult_t error;
static _Thread_local struct emulated_task *tasks;
static _Thread_local size_t task_count;
static _Thread_local struct emulated_job *jobs;
static _Thread_local size_t job_count;

ncclResult_t emulated_group_start(void)
{
    depth++;
    return ncclSuccess;
}

ncclResult_t emulated_group_error(ncclResult_t result)
{
    if (depth > 0 && result != ncclSuccess && error == ncclSuccess) {
        error = result;
    }
    return result;
}

ncclResult_t emulated_group_add_task(const struct emulated_task *task)
{
    for (size_t i = task_count; i-- > 0;) {
        if (tasks[i].comm == task->comm) {
            ncclResult_t result = emulated_same_capture(tasks[i].stream, task->stream);
            if (result != ncclSuccess) {
                return emulated_group_error(result);
            }
            break;
        }
    }
    struct emulated_task *grown = realloc(tasks, (task_count + 1) * sizeof(*tasks));
    if (grown == NULL) {
        return emulated_group_error(ncclSystemError);
    }
    tasks = grown;
    tasks[task_count++] = *task;
    return ncclSuccess;
}

ncclResult_t emulated_group_add_job(const struct emulated_job *job)
{
    struct emulated_job *grown = realloc(jobs, (job_count + 1) * sizeof(*jobs));
    if (grown == NULL) {
        return emulated_group_error(ncclSystemError);
    }
    jobs = grown;
    jobs[job_count++] = *job;
    return ncclSuccess;
}

static void *job_main(void *argument)
{
    struct emulated_job *job = argument;
    job->status = emulated_job_run(job);
    return NULL;
}

/* One set-up runs here; several get a thread each, since they wait for each other. */
static ncclResult_t run_jobs(struct emulated_job *list, size_t count)
{
    if (count == 1) {
        return emulated_job_run(&list[0]);
    }
    ncclResult_t result = ncclSuccess;
    pthread_t *threads = calloc(count + 1, sizeof(*threads));
    if (threads == NULL) {
        return ncclSystemError;
    }
    size_t started = 0;
    while (started < count && result == ncclSuccess) {
        if (pthread_create(&threads[started], NULL, job_main, &list[started]) != 0) {
            result = ncclSystemError;
        } else {
            started++;
        }
    }
    for (size_t i = 0; i < started; i++) {
        pthread_join(threads[i], NULL);
        if (list[i].status != ncclSuccess && result == ncclSuccess) {
            result = list[i].status;
        }
    }
    free(threads);
    return result;
}

ncclResult_t emulated_group_end(void)
{
    if (depth == 0) {
        WARN("ncclGroupEnd: not in a group call.");
        return ncclInvalidUsage;
    }
    if (--depth > 0) {
        return ncclSuccess;
    }
    /* The lists are taken first: what runs below may open groups of its own. */
    struct emulated_task *my_tasks = tasks;
    struct emulated_job *my_jobs = jobs;
    size_t my_task_count = task_count;
    size_t my_job_count = job_count;
    ncclResult_t result = error;
    tasks = NULL;
    jobs = NULL;
    task_count = 0;
    job_count = 0;
    error = ncclSuccess;
    if (result == ncclSuccess && my_job_count > 0) {
        result = run_jobs(my_jobs, my_job_count);
    }
    if (result == ncclSuccess && my_task_count > 0) {
        result = my_tasks[0].comm->nonblocking ? emulated_launch_later(my_tasks, my_task_count)
                                               : emulated_launch(my_tasks, my_task_count);
    }
    free(my_tasks);
    free(my_jobs);
    return result;
}

ncclResult_t pncclGroupStart(void)
{
    emulated_env_init();
    ENTER_API();
    return emulated_group_start();
}
EMULATED_ALIAS(ncclGroupStart);

ncclResult_t pncclGroupEnd(void)
{
    ncclResult_t fault = emulated_fault("ncclGroupEnd");
    emulated_group_error(fault);
    return emulated_group_end();
}
EMULATED_ALIAS(ncclGroupEnd);

ncclResult_t pncclGroupSimulateEnd(ncclSimInfo_t *info)
{
    ENTER_API();
    if (depth == 0) {
        WARN("ncclGroupSimulateEnd: not in a group call.");
        return ncclInvalidUsage;
    }
    ncclResult_t result = error;
    depth--;
    if (depth == 0) {
        free(tasks);
        tasks = NULL;
        task_count = 0;
        error = ncclSuccess;
    }
    if (info != NULL) {
        info->estimatedTime = 0;
    }
    return result;
}
EMULATED_ALIAS(ncclGroupSimulateEnd);
