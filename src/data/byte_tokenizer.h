// The files of the byte tokenizer, as Hugging Face writes them: `transformers` loads them and gives the same ids.
#pragma once
#include <map>
#include <string>

namespace temper {

std::map<std::string, std::string> byte_tokenizer_files();  // name → content

}  // namespace temper
