#include "netlab/commands.h"

#include <cmath>
#include <sstream>
#include <stdexcept>
#include <vector>

namespace decentral::netlab {
namespace {

double Number(const std::string& word, double most) {
  size_t used = 0;
  double value = -1;
  try {
    value = std::stod(word, &used);
  } catch (const std::logic_error&) {
  }
  if (used != word.size() || !std::isfinite(value) || value < 0 || value > most) {
    throw std::invalid_argument("'" + word + "' is not a number from 0 to " +
                                std::to_string(static_cast<int64_t>(most)));
  }
  return value;
}

int64_t Nanoseconds(const std::string& ms) {
  return static_cast<int64_t>(std::llround(Number(ms, 60'000) * 1e6));
}

std::vector<int> Hosts(const LineSwitch& lines, const std::string& word) {
  std::vector<int> out;
  if (word == "*") {
    for (int host = 0; host < lines.hosts(); ++host) out.push_back(host);
    return out;
  }
  const double host = Number(word, lines.hosts() - 1);
  if (host != std::floor(host)) throw std::invalid_argument("'" + word + "' is no host");
  return {static_cast<int>(host)};
}

std::string Stats(const LineSwitch& lines) {
  std::ostringstream out;
  out << "{\"hosts\": [";
  for (int host = 0; host < lines.hosts(); ++host) {
    const HostCounters& c = lines.Counters(host);
    out << (host ? ", " : "") << "{\"sent_packets\": " << c.sent_packets
        << ", \"sent_bytes\": " << c.sent_bytes
        << ", \"delivered_packets\": " << c.delivered_packets
        << ", \"delivered_bytes\": " << c.delivered_bytes << ", \"dropped_up\": " << c.dropped_up
        << ", \"dropped_down\": " << c.dropped_down << ", \"lost\": " << c.lost
        << ", \"cut\": " << c.cut << ", \"blocked\": " << c.blocked
        << ", \"corrupted\": " << c.corrupted << ", \"astray\": " << c.astray << "}";
  }
  out << "]}";
  return out.str();
}

std::string Obey(LineSwitch& lines, const std::vector<std::string>& words) {
  const std::string& verb = words[0];
  const auto takes = [&](size_t arguments) {
    if (words.size() != arguments + 1) {
      throw std::invalid_argument(verb + " takes " + std::to_string(arguments) + " arguments");
    }
  };
  if (verb == "stats") {
    takes(0);
    return Stats(lines);
  }
  if (verb == "rate") {
    takes(3);
    const bool up = words[2] == "up";
    if (!up && words[2] != "down") throw std::invalid_argument("a rate is up or down");
    const double mbit = Number(words[3], 1e6);
    for (const int host : Hosts(lines, words[1])) {
      up ? lines.SetUp(host, mbit) : lines.SetDown(host, mbit);
    }
  } else if (verb == "queue") {
    takes(2);
    const int64_t ns = Nanoseconds(words[2]);
    for (const int host : Hosts(lines, words[1])) lines.SetQueue(host, ns);
  } else if (verb == "delay") {
    takes(3);
    const int64_t ns = Nanoseconds(words[3]);
    for (const int from : Hosts(lines, words[1])) {
      for (const int to : Hosts(lines, words[2])) lines.SetDelay(from, to, ns);
    }
  } else if (verb == "loss") {
    if (words.size() == 2) {
      lines.SetLoss(Number(words[1], 1));
    } else {
      takes(2);
      const double probability = Number(words[2], 1);
      for (const int host : Hosts(lines, words[1])) lines.SetLoss(host, probability);
    }
  } else if (verb == "corrupt") {
    takes(2);
    const double probability = Number(words[2], 1);
    for (const int host : Hosts(lines, words[1])) lines.SetCorruption(host, probability);
  } else if (verb == "cut" || verb == "heal") {
    takes(1);
    for (const int host : Hosts(lines, words[1])) lines.SetCut(host, verb == "cut");
  } else if (verb == "block") {
    takes(3);
    const bool on = words[3] == "on";
    if (!on && words[3] != "off") throw std::invalid_argument("a block is on or off");
    for (const int from : Hosts(lines, words[1])) {
      for (const int to : Hosts(lines, words[2])) lines.SetBlocked(from, to, on);
    }
  } else {
    throw std::invalid_argument("there is no command '" + verb + "'");
  }
  return "ok";
}

}  // namespace

std::string Execute(LineSwitch& lines, const std::string& command) {
  std::istringstream in(command);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  if (words.empty()) return "error: an empty command";
  try {
    return Obey(lines, words);
  } catch (const std::invalid_argument& error) {
    return std::string("error: ") + error.what();
  }
}

}  // namespace decentral::netlab
