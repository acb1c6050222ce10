# SPIR-V as an array of its 32-bit words, little-endian in the file.
file(READ ${SPIRV} hex HEX)
string(REGEX REPLACE "(..)(..)(..)(..)" "0x\\4\\3\\2\\1,\n" words "${hex}")
string(TOUPPER "${NAME}" upper)
file(WRITE ${OUT} "#include \"core/vk/shaders.h\"\nnamespace firn::vk {\nconst std::uint32_t k_${NAME}_words[] = {\n${words}};\n"
                  "const Shader k_${NAME}_shader{k_${NAME}_words, sizeof(k_${NAME}_words)};\n}  // namespace firn::vk\n")
