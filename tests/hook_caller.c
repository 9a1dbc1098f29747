/* SPDX-License-Identifier: Apache-2.0 */
/* Reaches a function of hook_fixture.c in the ways in which programs reach NCCL. */
#define EXPORT __attribute__((visibility("default")))

long ncclAllReduce(long value);

typedef long (*function)(long);

/* A pointer in writable data, and one that the loader makes read-only. */
EXPORT function caller_table[] = {ncclAllReduce};
static const function constant_table[] = {ncclAllReduce};

EXPORT long caller_call(long value)
{
    return ncclAllReduce(value);
}

EXPORT long caller_call_table(long value)
{
    return (*(function volatile *)&caller_table[0])(value);
}

EXPORT long caller_call_constant(long value)
{
    return (*(const function volatile *)&constant_table[0])(value);
}
