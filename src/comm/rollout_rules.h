// What hub and workers insist on, rule by rule. Programs leave all of them on: tests/sim switches one off at a time, to
// show that the simulation would notice its loss.
#pragma once

namespace temper {

struct RolloutRules {
  // the hub
  bool same_build = true;          // workers of another build are refused
  bool same_model = true;          // of another model
  bool same_config = true;         // of other settings
  bool fence_epochs = true;        // what an older epoch sends is refused
  bool result_ends_lease = true;   // so that a second result of it is a duplicate
  bool timeout_ends_lease = true;  // so that its late result is refused
  bool requeue_late = true;        // prompts of expired leases are given out again
  bool requeue_of_lost_worker = true;
  bool requeue_handed_back = true;
  bool requeue_dropped = true;  // groups too old when a batch is taken
  bool requeue_unnamed = true;  // leases that a heartbeat does not name were lost on the way
  bool bound_attempts = true;
  bool check_result_versions = true;  // no token older or newer than the lease allows
  bool check_result_shape = true;     // as many completions, tokens and rewards as were asked for
  bool fresh_workers_only = true;     // leases go to workers whose weights are new enough
  bool drop_old_partials = true;      // what an older policy than the lease allows began is begun anew
  bool log_before_ack = true;
  // the group buffer
  bool bound_by_staleness = true;  // the admission formula's second bound
  bool bound_by_running = true;    // its first bound
  bool check_at_consumption = true;
  bool uncount_ended = true;  // filtered, dropped and failed groups leave the count
  bool keep_slots = true;     // wait: no slot of a batch for a group that would make another too old
  // the log
  bool replay_own_history = true;  // groups of a history that a restart undid stay out
  // the worker
  bool drop_old_weights = true;   // weights of an older epoch are not generated with
  bool drop_old_leases = true;    // nor leases of it gone on with
  bool start_leases_once = true;  // a lease that comes twice is one lease
  bool wait_for_swap = true;      // without in-flight updates weights change when nothing runs
  bool say_hello_again = true;    // when the hub is silent or does not know the worker
};

}  // namespace temper
