/* SPDX-License-Identifier: Apache-2.0 */
    .section .rodata
    .balign 16
    .globl lamprey_fatbin
    .hidden lamprey_fatbin
    .type lamprey_fatbin, %object
lamprey_fatbin:
    .incbin LAMPREY_FATBIN
    .size lamprey_fatbin, . - lamprey_fatbin
    .section .note.GNU-stack, "", %progbits
