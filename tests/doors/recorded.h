// SPDX-License-Identifier: Apache-2.0
// Arguments of a call as bytes, and made-up arguments for every parameter list of NCCL.
#ifndef LAMPREY_TESTS_DOORS_RECORDED_H
#define LAMPREY_TESTS_DOORS_RECORDED_H

#include <cstring>
#include <string>
#include <type_traits>

template <typename... Arguments> std::string bytes_of(const Arguments &...arguments)
{
    std::string bytes;
    (bytes.append(reinterpret_cast<const char *>(&arguments), sizeof(arguments)), ...);
    return bytes;
}

// Pointers lead into zeroed memory of their own, since the library may look behind some of them;
// everything else gets a value that its neighbours don't have.
template <typename T> T made_up(int position)
{
    static char memory[16][4096];
    T value;
    if constexpr (std::is_pointer_v<T>) {
        value = reinterpret_cast<T>(memory[position % 16]);
    } else if constexpr (std::is_enum_v<T>) {
        value = static_cast<T>(position % 4);
    } else if constexpr (std::is_same_v<T, int>) {
        value = 17 * (position % 7 + 1);
    } else {
        std::memset(&value, 0x11 * (position % 7 + 1), sizeof(value));
    }
    return value;
}

#endif
