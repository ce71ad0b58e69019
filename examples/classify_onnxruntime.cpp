// Classify an image with ONNX Runtime's C++ API: classify_onnxruntime BUNDLE IMAGE.ppm
//
// IMAGE.ppm is a binary PPM of the model's size, as "magick cat.jpg -resize 32x32! cat.ppm" leaves it.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

// The pixels of a PPM of height shape[2] and width shape[3]: float [3, H, W] in [0, 1]; normalisation is in the model.
std::vector<float> read_image(const std::string& path, const std::vector<int64_t>& shape) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int64_t width = 0, height = 0, largest = 0;
  if (!(file >> magic >> width >> height >> largest) || magic != "P6" || largest != 255)
    throw std::runtime_error(path + " is not a binary PPM of 8 bits");
  if (height != shape[2] || width != shape[3])
    throw std::runtime_error(path + " is not of the model's size, " + std::to_string(shape[3]) + " pixels");
  file.get();  // the one blank after the header
  std::vector<unsigned char> pixels(3 * height * width);
  if (!file.read(reinterpret_cast<char*>(pixels.data()), static_cast<std::streamsize>(pixels.size())))
    throw std::runtime_error(path + " is cut short");
  std::vector<float> x(pixels.size());
  for (int64_t i = 0; i < height * width; ++i)
    for (int64_t c = 0; c < 3; ++c) x[c * height * width + i] = static_cast<float>(pixels[3 * i + c]) / 255.0F;
  return x;
}

int main(int argc, char** argv) try {
  if (argc != 3) throw std::runtime_error("usage: classify_onnxruntime BUNDLE IMAGE.ppm");
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "classify");
  Ort::Session session(env, (std::filesystem::path(argv[1]) / "model.onnx").c_str(), Ort::SessionOptions());
  std::vector<int64_t> shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();  // [-1, 3, H, W]
  std::vector<float> x = read_image(argv[2], shape);
  shape[0] = 1;

  Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  Ort::Value images = Ort::Value::CreateTensor<float>(memory, x.data(), x.size(), shape.data(), shape.size());
  const char* input = "images";
  const char* output = "logits";
  std::vector<Ort::Value> outputs = session.Run(Ort::RunOptions(), &input, &images, 1, &output, 1);
  const float* logits = outputs[0].GetTensorData<float>();  // [1, classes]
  const size_t classes = outputs[0].GetTensorTypeAndShapeInfo().GetElementCount();

  Ort::AllocatorWithDefaultOptions allocator;
  Ort::AllocatedStringPtr held = session.GetModelMetadata().LookupCustomMetadataMapAllocated("labels", allocator);
  const std::string json = held ? held.get() : "[]";  // as the manifest has it: a list of strings
  const std::regex quoted("\"([^\"]*)\"");
  const std::vector<std::string> labels(std::sregex_token_iterator(json.begin(), json.end(), quoted, 1), {});

  std::vector<float> p(classes);
  const float top = *std::max_element(logits, logits + classes);
  std::transform(logits, logits + classes, p.begin(), [top](float logit) { return std::exp(logit - top); });
  const float total = std::accumulate(p.begin(), p.end(), 0.0F);
  std::vector<size_t> order(classes);
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&p](size_t a, size_t b) { return p[a] > p[b]; });
  for (size_t rank = 0; rank < std::min<size_t>(3, classes); ++rank) {
    const size_t k = order[rank];
    std::printf("%.3f  %s\n", p[k] / total, k < labels.size() ? labels[k].c_str() : std::to_string(k).c_str());
  }
} catch (const std::exception& error) {  // Ort::Exception is one
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
