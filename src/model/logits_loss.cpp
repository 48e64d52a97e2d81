#include "model/logits_loss.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include "core/error.h"
#include "model/tensor_parallel.h"

namespace temper {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kRowsAlive = 64;  // of logits alive at once

// What a backward pass needs again. The heads belong to models that outlive the graph.
struct Problem : torch::CustomClassHolder {
  const LinearWeights* head;
  const LinearWeights* teacher_head;
  LogitsLoss loss;
};

template <class Function>
void for_each_piece(int64_t rows, Function function) {
  for (int64_t begin = 0; begin < rows; begin += kRowsAlive) function(begin, std::min(kRowsAlive, rows - begin));
}

// [rows, V] over the whole vocabulary; ranks that share the head put it together from their columns.
at::Tensor logits_of(const at::Tensor& hidden, const LinearWeights& head, int64_t begin, int64_t rows) {
  const at::Tensor own = head.forward.multiply(hidden.narrow(0, begin, rows), at::kFloat);
  if (head.output_ranks == nullptr) return own;
  const int num_ranks = head.output_ranks->size();
  const int64_t widest = (head.num_outputs() + num_ranks - 1) / num_ranks;
  const at::Tensor sent = at::constant_pad_nd(own, {0, widest - own.size(1)}).contiguous();
  const at::Tensor all = at::empty({num_ranks, rows, widest}, own.options());
  head.output_ranks->all_gather("parts of the logits", sent, all).wait();
  std::vector<at::Tensor> columns;
  for (int r = 0; r < num_ranks; ++r)
    columns.push_back(all[r].narrow(1, 0, TensorPart{r, num_ranks}.length(head.num_outputs())));
  return at::cat(columns, 1);
}

at::Tensor compute(const at::Tensor& hidden, const at::Tensor& teacher_hidden, const Problem& problem) {
  const at::NoGradGuard no_grad;
  at::Tensor result = at::empty({hidden.size(0)}, hidden.options().dtype(at::kFloat));
  for_each_piece(hidden.size(0), [&](int64_t begin, int64_t rows) {
    result.narrow(0, begin, rows)
        .copy_(problem.loss(logits_of(hidden, *problem.head, begin, rows),
                            logits_of(teacher_hidden, *problem.teacher_head, begin, rows)));
  });
  return result;
}

struct Loss : torch::autograd::Function<Loss> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& hidden, const at::Tensor& teacher_hidden,
                            const c10::intrusive_ptr<Problem>& problem) {
    context->save_for_backward({hidden, teacher_hidden});
    context->saved_data["problem"] = c10::IValue::make_capsule(problem);
    return compute(hidden, teacher_hidden, *problem);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &hidden = saved[0], &teacher_hidden = saved[1];
    const auto problem = c10::static_intrusive_pointer_cast<Problem>(context->saved_data["problem"].toCapsule());
    const at::Tensor grad = grads[0].to(at::kFloat);
    at::Tensor hidden_grad = at::zeros(hidden.sizes(), hidden.options().dtype(at::kFloat));
    for_each_piece(hidden.size(0), [&](int64_t begin, int64_t rows) {
      at::Tensor logits = logits_of(hidden, *problem->head, begin, rows).requires_grad_(true);
      const at::Tensor teacher_logits = logits_of(teacher_hidden, *problem->teacher_head, begin, rows);
      {
        const at::AutoGradMode record(true);
        problem->loss(logits, teacher_logits).backward(grad.narrow(0, begin, rows));
      }
      const at::Tensor dlogits = logits.grad()
                                     .narrow(1, problem->head->first_output, problem->head->forward.num_outputs())
                                     .to(hidden.scalar_type())
                                     .contiguous();
      at::Tensor weight_grad = problem->head->weight_grad, part = hidden_grad.narrow(0, begin, rows);
      accumulate_outer_product(dlogits, hidden.narrow(0, begin, rows), weight_grad);
      problem->head->backward.multiply_add(dlogits, part);
    });
    if (problem->head->output_ranks != nullptr)
      problem->head->output_ranks->all_reduce("gradient of the head's input", hidden_grad).wait();
    return {hidden_grad.to(hidden.scalar_type()), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor logits_loss(const at::Tensor& hidden, const LinearWeights& head, const at::Tensor& teacher_hidden,
                       const LinearWeights& teacher_head, LogitsLoss loss) {
  TEMPER_CHECK(hidden.size(0) == teacher_hidden.size(0), "{} rows of the student, {} of the teacher", hidden.size(0),
               teacher_hidden.size(0));
  TEMPER_CHECK(head.num_outputs() == teacher_head.num_outputs(), "vocabularies of {} and {}", head.num_outputs(),
               teacher_head.num_outputs());
  auto problem = c10::make_intrusive<Problem>();
  problem->head = &head;
  problem->teacher_head = &teacher_head;
  problem->loss = std::move(loss);
  if (!at::GradMode::is_enabled() || !hidden.requires_grad()) return compute(hidden, teacher_hidden, *problem);
  return Loss::apply(hidden, teacher_hidden, problem);
}

}  // namespace temper
