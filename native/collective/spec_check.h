// Refuses a call that cannot work, before a byte moves.
#pragma once

#include "collective/engine.h"

namespace decentral {

// Throws Error(kConfig) that says what is wrong. What it lets through is memory-safe to execute
// whatever other members send; that plans fit together is the planner's business
// (decentral.collectives.plan.validate).
void CheckSpec(const OpSpec&, const PeerId& self, const float* src, const float* dst);

}  // namespace decentral
