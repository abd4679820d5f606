// Native failpoints, as decentral/failpoints.py arms and reads them.
#include "core/failpoint.h"
#include "python/values.h"

namespace decentral {
namespace {

Failpoint Named(const std::string& name) {
  if (const auto point = FailpointNamed(name)) return *point;
  throw Error(ErrorKind::kConfig, "failpoint", "there is no native failpoint " + name);
}

FailAction ActionNamed(const std::string& name) {
  if (name == "crash") return FailAction::kCrash;
  if (name == "stall") return FailAction::kStall;
  if (name == "error") return FailAction::kError;
  throw Error(ErrorKind::kConfig, "failpoint", "a failpoint cannot " + name);
}

const char* NameOfAction(FailAction action) {
  switch (action) {
    case FailAction::kCrash:
      return "crash";
    case FailAction::kStall:
      return "stall";
    case FailAction::kError:
      break;
  }
  return "error";
}

}  // namespace

void BindFailpoints(nb::module_& m) {
  m.def("failpoint_names", [] {
    std::vector<std::string> names;
    for (size_t i = 0; i < static_cast<size_t>(Failpoint::kCount); ++i) {
      names.emplace_back(NameOf(static_cast<Failpoint>(i)));
    }
    return names;
  });
  m.def(
      "arm_failpoint",
      [](const std::string& name, const std::string& action, double stall_s, uint64_t passage) {
        ArmFailpoint(Named(name), ActionNamed(action), stall_s, passage);
      },
      "name"_a, "action"_a, "stall_s"_a, "passage"_a);
  m.def(
      "disarm_failpoint", [](const std::string& name) { DisarmFailpoint(Named(name)); }, "name"_a);
  m.def(
      "failpoint_is_armed", [](const std::string& name) { return IsArmed(Named(name)); }, "name"_a);
  m.def(
      "failpoints_failed",
      [] {
        std::vector<std::tuple<std::string, std::string, double>> failed;
        for (const FailedHere& one : FailedSoFar()) {
          failed.emplace_back(NameOf(one.where), NameOfAction(one.action), one.at_s);
        }
        return failed;
      },
      "(name, action, at in monotonic seconds), oldest first.");
}

}  // namespace decentral
