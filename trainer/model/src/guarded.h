// What the C++ files beside it agree on: no exception leaves them.

#pragma once

#include <cstring>
#include <exception>
#include <string>

// Runs `body` and gives null, or else what it threw as a message to be freed with free().
template <class F>
char *guarded(F &&body) noexcept {
    try {
        body();
        return nullptr;
    } catch (const std::exception &error) {
        // The lines below the first are a stack trace.
        std::string text = error.what();
        return strdup(text.substr(0, text.find('\n')).c_str());
    } catch (...) {
        return strdup("an error of an unknown kind");
    }
}
