// The results of a job: progress, previews, then the pictures with their conditions.
// `element`, `props`, `trigger` and `watch` are Gradio's. props.value: JSON, see gallery.py.
const part = (name) => element.querySelector("." + name);

function made(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function figure(source, caption, name, onview) {
  const image = made("img", { src: source, alt: name, loading: "eager", draggable: "false" });
  const shown = onview ? made("button", { type: "button", class: "view", "aria-label": "Look at " + name, onclick: onview }, image) : image;
  return made("figure", {}, shown, made("figcaption", {}, ...caption));
}

function finished(picture, place, all) {
  const name = "photograph " + (place + 1);
  const caption = [made("span", { class: "number" }, String(place + 1))];
  caption.push(made("a", { class: "download", href: picture.address + "?download=1", download: picture.file, "aria-label": "Download " + name }, "PNG"));
  if (picture.editable) {
    caption.push(made("button", { type: "button", class: "edit", "aria-label": "Edit " + name, onclick: () => edit(picture) }, "Edit"));
  }
  return figure(picture.address, caption, name, () => view(all, place));
}

const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

function edit(picture) {
  trigger("select", { id: picture.id });
  const painter = element.closest("[role=tabpanel]")?.querySelector(".painter");
  painter?.scrollIntoView({ behavior: still() ? "auto" : "smooth", block: "start" });
}

// On a small screen the pictures are below the button that asks for them.
function come() {
  const { top } = element.getBoundingClientRect();
  if (top > innerHeight * 0.8) element.scrollIntoView({ behavior: still() ? "auto" : "smooth", block: "start" });
}

function view(pictures, place) {
  const dialog = part("viewer");
  const show = (k) => {
    place = (k + pictures.length) % pictures.length;
    dialog.querySelector("img").src = pictures[place].address;
    dialog.querySelector("img").alt = "Photograph " + (place + 1);
    part("which").textContent = place + 1 + " of " + pictures.length;
  };
  part("previous").onclick = () => show(place - 1);
  part("next").onclick = () => show(place + 1);
  part("close").onclick = () => dialog.close();
  dialog.onclick = (event) => event.target === dialog && dialog.close();
  dialog.onkeydown = (event) => {
    if (event.key === "ArrowLeft") show(place - 1);
    if (event.key === "ArrowRight") show(place + 1);
  };
  part("previous").hidden = part("next").hidden = pictures.length < 2;
  show(place);
  dialog.showModal();
}

let shown = {}, last = {}; // what is shown; the last finished pictures, which stay beside a problem

// "settled" only clears an earlier problem: pictures stay.
function arrived() {
  const value = JSON.parse(props.value || "{}");
  if (value.state === "settled" && shown.state !== "failed") return;
  if (value.state === "done") last = value;
  if (value.state === "settled") shown = last.pictures ? last : { ...value, state: "empty" };
  else shown = value.state === "failed" ? { ...last, ...value } : value;
  render(shown);
}

function render(value) {
  const running = value.state === "waiting" || value.state === "running";
  if (running && element.dataset.state !== "running" && element.dataset.state !== "waiting") come();
  element.dataset.state = value.state;
  part("status").textContent = value.problem ? "" : value.status || "";
  part("problem").textContent = value.problem || "";
  const bar = part("progress");
  bar.hidden = !running;
  if (value.total) bar.max = value.total;
  bar.value = value.done || 0;
  part("conditions").replaceChildren(...(value.conditions || []).map((c) => figure(c.source, [c.name], c.name)));
  const pictures = value.pictures || [];
  const cells = pictures.map((picture, k) => finished(picture, k, pictures));
  cells.push(...(value.previews || []).map((source, k) => figure(source, [made("span", { class: "number" }, String(k + 1))], "photograph " + (k + 1) + ", not finished")));
  const missing = running ? (value.expected || 0) - (value.previews || []).length : 0;
  for (let k = 0; k < missing; k++) cells.push(made("figure", { class: "pending", style: "--shape: " + (value.shape || 1) }, made("div", {}), made("figcaption", {}, "…")));
  part("pictures").replaceChildren(...cells);
  part("notes").replaceChildren(...(value.notes || []).map((note) => made("li", {}, note)));
}

watch("value", arrived);
arrived();
