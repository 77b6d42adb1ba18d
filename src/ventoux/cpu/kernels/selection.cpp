#include "selection.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

namespace ventoux {
namespace {

constexpr int kBits = 11;     // of a key that are looked at in one round, from the top
constexpr size_t kBins = 1 << kBits;
constexpr size_t kBanks = 4;  // so that equal values, one behind the other, do not wait for each other's sum

// Floats in the order of unsigned integers.
uint32_t key_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits ^ (uint32_t(int32_t(bits) >> 31) | 0x80000000u);
}

float value_of(uint32_t key) {
  const uint32_t bits = key ^ (key >> 31 ? 0x80000000u : 0xffffffffu);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Whether there are two that are not the same.
bool differ(const uint32_t* keys, size_t n) {
  uint32_t bits = 0;
  for (size_t i = 1; i < n; i++) bits |= keys[i] ^ keys[0];
  return bits != 0;
}

// Goes from the largest of n values down, adds up mass(value), and returns the value at which that reaches goal(sum of all).
//
// A radix select: one pass sums the masses by the keys' first bits, which says in which bin the goal is reached; the next
// looks at that bin alone. So whatever values there are, equal or all different, three passes find it.
template <class Mass, class Goal>
float where_reached(const float* values, size_t n, Mass mass, Goal goal_of) {
  const std::unique_ptr<uint32_t[]> memory(new uint32_t[n]);
  uint32_t* keys = memory.get();
  for (size_t i = 0; i < n; i++) keys[i] = key_of(values[i]);

  double above = 0, goal = 0;  // above: the mass of all that is larger than what is still looked at
  uint32_t found = 0;          // the key, as far as it is known
  for (int unknown = 32; unknown > 0 && differ(keys, n);) {
    const int width = unknown < kBits ? unknown : kBits, shift = unknown - width;
    const uint32_t mask = (1u << width) - 1;
    double bins[kBins][kBanks] = {};
    for (size_t i = 0; i < n; i++) bins[keys[i] >> shift & mask][i % kBanks] += mass(value_of(keys[i]));
    double sums[kBins], all = 0;
    for (size_t bin = kBins; bin-- > 0;) all += sums[bin] = (bins[bin][0] + bins[bin][1]) + (bins[bin][2] + bins[bin][3]);
    if (unknown == 32) goal = goal_of(all);
    double here = above;
    for (size_t bin = kBins; bin-- > 0 && here < goal;) {
      if (sums[bin] == 0) continue;
      above = here;
      here += sums[bin];
      found = (found & ~(mask << shift)) | uint32_t(bin) << shift;  // the lowest, should rounding leave the goal out of reach
    }
    size_t left = 0;
    for (size_t i = 0; i < n; i++) {
      const uint32_t key = keys[i];
      keys[left] = key;
      left += (key ^ found) >> shift == 0;
    }
    n = left;
    unknown = shift;
  }
  return value_of(keys[0]);
}

constexpr size_t kSummed = 256;  // weights that are summed as one before it is known which of them is drawn

double sum_of(const float* weights, size_t n) {
  double banks[kBanks] = {};
  size_t i = 0;
  for (; i + kBanks <= n; i += kBanks)
    for (size_t bank = 0; bank < kBanks; bank++) banks[bank] += double(weights[i + bank]);
  for (; i < n; i++) banks[0] += double(weights[i]);
  return (banks[0] + banks[1]) + (banks[2] + banks[3]);
}

// The first mass with which their running sum passes `goal`, from which those before it are taken; the last that is not 0 where
// rounding leaves the goal out of reach.
template <class Mass>
size_t where_passed(const Mass* masses, size_t n, double& goal) {
  size_t found = 0;
  double passed = 0;
  for (size_t i = 0; i < n; i++) {
    const double mass = double(masses[i]);
    if (mass == 0) continue;
    goal -= passed;
    found = i;
    if (goal < mass) break;
    passed = mass;
  }
  return found;
}

}  // namespace

float kth_largest(const float* values, size_t n, size_t k) {
  return where_reached(values, n, [](float) { return 1.0; }, [k](double) { return double(k); });
}

float nucleus_floor(const float* weights, size_t n, double share) {
  return where_reached(weights, n, [](float weight) { return double(weight); }, [share](double all) { return share * all; });
}

size_t draw(const float* weights, size_t n, double share) {
  std::vector<double> sums;
  double all = 0;
  for (size_t first = 0; first < n; first += kSummed) {
    sums.push_back(sum_of(weights + first, std::min(kSummed, n - first)));
    all += sums.back();
  }
  double goal = share * all;
  const size_t first = where_passed(sums.data(), sums.size(), goal) * kSummed;
  return first + where_passed(weights + first, std::min(kSummed, n - first), goal);
}

}  // namespace ventoux
