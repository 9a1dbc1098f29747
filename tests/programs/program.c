/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "tests/programs/program.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static _Thread_local int current_rank = -1;

static bool share_gpu(void)
{
    const char *value = getenv("PROGRAM_SHARE_GPU");
    return value != NULL && strcmp(value, "1") == 0;
}

_Noreturn void program_fail(const char *format, ...) {
    va_list arguments;
    char text[1024];
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (current_rank >= 0) {
        fprintf(stderr, "rank %d: %s\n", current_rank, text);
    } else {
        fprintf(stderr, "%s\n", text);
    }
    fflush(NULL);
    /* No atexit handlers: a library's may wait for a GPU that never finishes. */
    _exit(1);
}

void program_cu(CUresult result, const char *call, const char *file, int line) {
    if (result != CUDA_SUCCESS) {
        const char *name = NULL;
        if (cuGetErrorName(result, &name) != CUDA_SUCCESS || name == NULL) {
            name = "unknown error";
        }
        program_fail("%s:%d: %s: %s (%d)", file, line, call, name, (int)result);
    }
}

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static struct program_shared *shared_create(void) {
    struct program_shared *shared =
        mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        program_fail("mmap: %s", strerror(errno));
    }
    return shared;
}

int program_gpu_count(void) {
    int *count =
        mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (count == MAP_FAILED) {
        program_fail("mmap: %s", strerror(errno));
    }
    *count = 0;
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) {
        program_fail("fork: %s", strerror(errno));
    }
    if (child == 0) {
        int found = 0;
        if (cuInit(0) == CUDA_SUCCESS && cuDeviceGetCount(&found) == CUDA_SUCCESS) {
            *count = found;
        }
        _exit(0);
    }
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR) {
    }
    int found = *count;
    munmap(count, sizeof *count);
    return found == 1 && share_gpu() ? 2 : found;
}

static void kill_all(const pid_t *children, int nranks) {
    for (int rank = 0; rank < nranks; rank++) {
        if (children[rank] > 0) {
            kill(children[rank], SIGKILL);
        }
    }
    for (int rank = 0; rank < nranks; rank++) {
        if (children[rank] > 0) {
            waitpid(children[rank], NULL, 0);
        }
    }
}

/* Collects one rank's end, if there is one. */
static void collect(pid_t *children, int nranks, int *left, int *result) {
    int status = 0;
    pid_t ended = waitpid(-1, &status, WNOHANG);
    if (ended <= 0) {
        struct timespec pause = {.tv_nsec = 2000000};
        nanosleep(&pause, NULL);
        return;
    }
    for (int rank = 0; rank < nranks; rank++) {
        if (children[rank] != ended) {
            continue;
        }
        children[rank] = 0;
        (*left)--;
        if (WIFSIGNALED(status)) {
            fprintf(stderr, "rank %d: killed by signal %d\n", rank, WTERMSIG(status));
            *result = 1;
        } else if (WEXITSTATUS(status) == PROGRAM_SKIP && *result == 0) {
            *result = PROGRAM_SKIP;
        } else if (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != PROGRAM_SKIP) {
            *result = 1;
        }
    }
}

static void check_ranks(int nranks) {
    if (nranks < 1 || nranks > PROGRAM_MAX_RANKS) {
        program_fail("%d ranks: this program takes 1 to %d", nranks, PROGRAM_MAX_RANKS);
    }
}

/* PROGRAM_ENVIRONMENT_<rank>=NAME=VALUE sets a variable in that rank alone. */
static void rank_environment(int rank)
{
    char name[48];
    if (share_gpu()) {
        snprintf(name, sizeof name, "rank-%d", rank);
        setenv("NCCL_HOSTID", name, 1);
    }
    snprintf(name, sizeof name, "PROGRAM_ENVIRONMENT_%d", rank);
    char *setting = getenv(name);
    if (setting != NULL && putenv(setting) != 0) {
        program_fail("%s: %s", name, strerror(errno));
    }
}

int program_processes(int nranks, int deadline_s, int (*body)(struct program_rank *self),
                      void *argument) {
    check_ranks(nranks);
    struct program_shared *shared = shared_create();
    pid_t children[PROGRAM_MAX_RANKS] = {0};
    pid_t parent = getpid();
    fflush(NULL);
    for (int rank = 0; rank < nranks; rank++) {
        children[rank] = fork();
        if (children[rank] < 0) {
            int error = errno;
            kill_all(children, rank);
            program_fail("fork: %s", strerror(error));
        }
        if (children[rank] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent) {
                _exit(1);
            }
            current_rank = rank;
            rank_environment(rank);
            struct program_rank self = {rank, nranks, shared, argument};
            /* exit, not _exit: what libraries print at the end belongs to the result. */
            exit(body(&self));
        }
    }
    double deadline = now_s() + deadline_s;
    int left = nranks;
    int result = 0;
    while (left > 0 && result == 0) {
        collect(children, nranks, &left, &result);
        if (now_s() > deadline) {
            fprintf(stderr, "%d of %d ranks are not done after %d s\n", left, nranks, deadline_s);
            result = 1;
        }
    }
    /* A rank's failure leaves the others waiting; those that fail by themselves get a moment to say
     * why. */
    double grace = now_s() + 2;
    while (left > 0 && now_s() < grace) {
        collect(children, nranks, &left, &result);
    }
    kill_all(children, nranks);
    munmap(shared, sizeof *shared);
    return result;
}

struct thread {
    struct program_rank self;
    int (*body)(struct program_rank *self);
    pthread_t handle;
    int result;
};

static void *thread_main(void *argument) {
    struct thread *thread = argument;
    current_rank = thread->self.rank;
    thread->result = thread->body(&thread->self);
    return NULL;
}

static void on_alarm(int signal_number) {
    (void)signal_number;
    static const char text[] = "not done in time\n";
    ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
    (void)ignored;
    _exit(1);
}

int program_threads(int nranks, int deadline_s, int (*body)(struct program_rank *self),
                    void *argument) {
    check_ranks(nranks);
    if (share_gpu()) {
        fprintf(stderr, "skipped: ranks of one process can't share a GPU with NCCL\n");
        return PROGRAM_SKIP;
    }
    struct program_shared *shared = shared_create();
    struct thread threads[PROGRAM_MAX_RANKS];
    int result = 0;
    signal(SIGALRM, on_alarm);
    alarm((unsigned)deadline_s);
    for (int rank = 0; rank < nranks; rank++) {
        threads[rank] = (struct thread){.self = {rank, nranks, shared, argument}, .body = body};
        int error = pthread_create(&threads[rank].handle, NULL, thread_main, &threads[rank]);
        if (error != 0) {
            program_fail("pthread_create: %s", strerror(error));
        }
    }
    for (int rank = 0; rank < nranks; rank++) {
        pthread_join(threads[rank].handle, NULL);
        if (result == 0) {
            result = threads[rank].result;
        }
    }
    alarm(0);
    munmap(shared, sizeof *shared);
    return result;
}

void program_barrier(struct program_rank *self) {
    struct program_shared *shared = self->shared;
    int round = atomic_load(&shared->barrier_round);
    if (atomic_fetch_add(&shared->barrier_arrived, 1) == self->nranks - 1) {
        atomic_store(&shared->barrier_arrived, 0);
        atomic_fetch_add(&shared->barrier_round, 1);
        return;
    }
    while (atomic_load(&shared->barrier_round) == round) {
        sched_yield();
    }
}

void program_share_id(struct program_rank *self, ncclUniqueId *id) {
    if (self->rank == 0) {
        self->shared->id = *id;
    }
    program_barrier(self);
    *id = self->shared->id;
    program_barrier(self);
}

double program_max(struct program_rank *self, double value) {
    self->shared->value[self->rank] = value;
    program_barrier(self);
    double largest = self->shared->value[0];
    for (int rank = 1; rank < self->nranks; rank++) {
        if (self->shared->value[rank] > largest) {
            largest = self->shared->value[rank];
        }
    }
    program_barrier(self);
    return largest;
}

int64_t program_sum(struct program_rank *self, int64_t count) {
    self->shared->count[self->rank] = count;
    program_barrier(self);
    int64_t sum = 0;
    for (int rank = 0; rank < self->nranks; rank++) {
        sum += self->shared->count[rank];
    }
    program_barrier(self);
    return sum;
}

void program_use_device(int device) {
    int count = 0;
    CUresult result = cuInit(0);
    if (result != CUDA_SUCCESS || cuDeviceGetCount(&count) != CUDA_SUCCESS || count == 0 ||
        (device >= count && !share_gpu())) {
        fprintf(stderr, "skipped: needs GPU %d, there are %d (cuInit gave %d)\n", device, count,
                (int)result);
        fflush(NULL);
        _exit(PROGRAM_SKIP);
    }
    CUdevice handle;
    CUcontext context;
    CU(cuDeviceGet(&handle, device % count));
    CU(cuDevicePrimaryCtxRetain(&context, handle));
    CU(cuCtxSetCurrent(context));
}

static const char *option_names[32];
static size_t option_count;

static void remember(const char *name) {
    if (option_count < sizeof option_names / sizeof option_names[0]) {
        option_names[option_count++] = name;
    }
}

int64_t program_option(int argc, char **argv, const char *name, int64_t fallback) {
    size_t length = strlen(name);
    remember(name);
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--", 2) == 0 && strncmp(argv[i] + 2, name, length) == 0 &&
            argv[i][2 + length] == '=') {
            char *end = NULL;
            errno = 0;
            long long value = strtoll(argv[i] + 3 + length, &end, 10);
            if (errno != 0 || *end != '\0' || end == argv[i] + 3 + length || value < 0) {
                program_fail("%s: not a number of at least 0", argv[i]);
            }
            return value;
        }
    }
    return fallback;
}

int program_flag(int argc, char **argv, const char *name) {
    remember(name);
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--", 2) == 0 && strcmp(argv[i] + 2, name) == 0) {
            return 1;
        }
    }
    return 0;
}

void program_options_end(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        int known = 0;
        for (size_t k = 0; k < option_count; k++) {
            size_t length = strlen(option_names[k]);
            if (strncmp(argv[i], "--", 2) == 0 &&
                strncmp(argv[i] + 2, option_names[k], length) == 0 &&
                (argv[i][2 + length] == '\0' || argv[i][2 + length] == '=')) {
                known = 1;
            }
        }
        if (!known) {
            fprintf(stderr, "%s: unknown option %s; known:", argv[0], argv[i]);
            for (size_t k = 0; k < option_count; k++) {
                fprintf(stderr, " --%s", option_names[k]);
            }
            fprintf(stderr, "\n");
            exit(2);
        }
    }
}

static int compare_doubles(const void *left, const void *right) {
    double a = *(const double *)left;
    double b = *(const double *)right;
    return (a > b) - (a < b);
}

double program_median(double *values, size_t count) {
    qsort(values, count, sizeof values[0], compare_doubles);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}
