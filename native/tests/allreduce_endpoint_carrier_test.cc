// allreduce_endpoint_test.cc, with all streams of each link on one connection.
#define DECENTRAL_TEST_OVER_CARRIERS
#include "tests/allreduce_endpoint_test.cc"
