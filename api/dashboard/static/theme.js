// Before anything is painted: the theme that was chosen here, if one was.
(() => {
  const chosen = localStorage.getItem("nif-theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
  document.documentElement.classList.add("js");
})();
