// Thumbnails of examples. props.pictures: [{name, source}]; the event `select` carries the `name` of one.
const strip = element.querySelector(".strip");
for (const { name, source } of props.pictures || []) {
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-label", "Start from the example " + name);
  const image = document.createElement("img");
  image.src = source;
  image.alt = "";
  const words = document.createElement("span");
  words.textContent = name.replaceAll("_", " ");
  button.append(image, words);
  button.addEventListener("click", () => trigger("select", { name }));
  strip.append(button);
}
