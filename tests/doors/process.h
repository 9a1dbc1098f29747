// SPDX-License-Identifier: Apache-2.0
// Runs caller.cc in processes of their own and tells what came of it.
#ifndef LAMPREY_TESTS_DOORS_PROCESS_H
#define LAMPREY_TESTS_DOORS_PROCESS_H

#include <map>
#include <ostream>
#include <string>
#include <vector>

// Paths below the folder that tests run in; absolute() makes them good for a loader.
extern const std::string kLibrary;
extern const std::string kFake; // the NCCL that writes down its calls
extern const std::string kUser; // a library that calls NCCL through symbols

std::string absolute(const std::string &path);
std::string read_file(const std::string &path);

using Environment = std::map<std::string, std::string>;

struct Outcome {
    int status = -1; // of the process, or -1 if it was killed by a signal or the deadline
    std::string log; // standard error
    std::multimap<std::string, std::string> values;   // name=value lines of standard output
    std::string value(const std::string &name) const; // the first of its name, or "(none)"
    std::vector<std::string> all(const std::string &name) const;
};

std::ostream &operator<<(std::ostream &stream, const Outcome &outcome);

// Runs caller with nothing in its environment but what is given, for a minute at most.
Outcome run(const std::vector<std::string> &arguments, const Environment &environment);

// One copy of the library is there, it works, and every function of the NCCL is redirected to it.
void expect_redirected(const Outcome &outcome);

// No library, no redirection, not a word.
void expect_nothing(const Outcome &outcome);

// A folder with the library under the names that it is installed by.
class Installed {
  public:
    Installed();
    ~Installed();
    Installed(const Installed &) = delete;
    Installed &operator=(const Installed &) = delete;

    std::string copy(const std::string &from, const std::string &name);
    std::string write(const std::string &name, const std::string &content);
    void remove(const std::string &name);
    void add_default_doors();
    const std::string &path() const;
    std::string library() const;

  private:
    std::string path_;
    std::vector<std::string> names_;
};

#endif
